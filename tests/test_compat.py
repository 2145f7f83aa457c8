"""What compat.py mends, and that it mends nothing else."""

import pytest
from forked import run

pytestmark = pytest.mark.stack


FAKE_TORCHVISION = """
    import importlib.util, sys, types
    from importlib.machinery import ModuleSpec

    class Finder:
        '''Finds a torchvision that fails to import {times} time(s).'''
        failures = {times}
        def find_spec(self, name, path=None, target=None):
            return ModuleSpec(name, self) if name == 'torchvision' else None
        def create_module(self, spec):
            return None
        def exec_module(self, module):
            if Finder.failures:
                Finder.failures -= 1
                raise RuntimeError({message!r})

    sys.meta_path.insert(0, Finder())
    import torch
    from mmvim import compat, mmcv_ops
    print('declared', compat._torchvision_library is not None, mmcv_ops.has_torchvision_ops())
"""


def test_torchvision_schemas_are_declared_after_that_very_failure():
    """None of its operators is taken then."""
    message = 'operator torchvision::nms does not exist'
    done = run(FAKE_TORCHVISION.format(times=1, message=message))
    assert done.stdout.strip() == 'declared True False', done.stderr
    done = run(FAKE_TORCHVISION.format(times=0, message=message))
    assert done.stdout.strip() == 'declared False False', done.stderr


def test_other_torchvision_failures_stay_visible():
    done = run(FAKE_TORCHVISION.format(times=1, message='libjpeg is broken'))
    assert done.returncode and 'libjpeg is broken' in done.stderr


def test_torchvision_imports_beside_mmvim():
    pytest.importorskip('torchvision')
    done = run('import mmvim, torchvision.transforms; print("fine")')
    assert done.stdout.strip() == 'fine', done.stderr


BASE_OF_MMSEG = """
    import importlib.metadata, sys
    find, renamed = importlib.metadata.distribution, sys.argv[1] == 'renamed'

    def distribution(name):
        if name != 'mmsegmentation':
            return find(name)
        if renamed:
            raise importlib.metadata.PackageNotFoundError(name)

    importlib.metadata.distribution = distribution
    import mmvim
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE
    print(MODULE2PACKAGE['mmseg'])
    if renamed:
        text = "_base_ = 'mmseg::_base_/default_runtime.py'"
        print(Config.fromstring(text, '.py').default_scope)
"""


def test_bases_in_mmseg_are_found_whatever_its_distribution_is_called():
    pytest.importorskip('mmseg')
    done = run(BASE_OF_MMSEG, 'renamed')
    assert done.stdout.split() == ['mmseg', 'mmseg'], done.stderr


def test_name_of_mmsegs_distribution_stays_where_it_is_right():
    pytest.importorskip('mmseg')
    done = run(BASE_OF_MMSEG, 'standard')
    assert done.stdout.split() == ['mmsegmentation'], done.stderr


@pytest.mark.parametrize('hidden', ['mmseg', 'mmdet', 'mmpretrain', 'all'])
def test_import_without_the_libraries(hidden):
    names = ['mmseg', 'mmdet', 'mmpretrain'] if hidden == 'all' else [hidden]
    code = """
        import sys
        sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None there: not to be found
        import mmvim, torch
        from mmengine.registry import MODELS
        model = MODELS.build(dict(type='mmvim.VisionMamba', arch='nano'))
        print(tuple(model(torch.zeros(1, 3, 32, 32))[0].shape))
    """
    done = run(code, *names)
    assert done.stdout.strip() == '(1, 64, 2, 2)', done.stderr


@pytest.mark.parametrize('name', ['mmengine', 'mmcv'])
@pytest.mark.parametrize('state', ['missing', 'old'])
def test_import_without_the_stack_says_what_to_install(name, state):
    code = f"""
        import importlib.util, sys, types
        from importlib.machinery import ModuleSpec
        if {state!r} == 'missing':
            find = importlib.util.find_spec
            importlib.util.find_spec = lambda n, *a: None if n == {name!r} else find(n, *a)
        else:
            import {name}
            {name}.__version__ = '0.1.0'
        try:
            import mmvim
        except ImportError as error:
            print(error)
    """
    done = run(code)
    message = done.stdout.strip()
    assert message.count('\n') == 0 and message.endswith('.'), (message, done.stderr)
    assert f'needs {name} >=' in message and 'pip install' in message
    assert ('not installed' if state == 'missing' else '0.1.0') in message


def test_found_by_its_scope_without_any_import():
    """The registries find mmvim by the name of its scope, with no custom_imports."""
    done = run(
        """
        import sys
        from mmengine.registry import MODELS, Registry
        library = Registry('model', parent=MODELS, scope='library', locations=[])
        assert 'mmvim' not in sys.modules
        print(type(library.build(dict(type='mmvim.VisionMamba', arch='nano'))).__name__)
        """
    )
    assert done.stdout.strip() == 'VisionMamba', done.stderr
