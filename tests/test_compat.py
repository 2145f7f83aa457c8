"""What compat.py mends, and that it mends nothing else."""

import collections
import io
import pickle
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint, save_checkpoint

from mmvim import compat

pytestmark = pytest.mark.stack


def python(code, *arguments):
    """Run code in a fresh interpreter, where nothing is imported yet."""
    return subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def mmengine_checkpoint():
    """What mmengine's CheckpointHook saves, with a log history in it."""
    hub = MessageHub.get_instance('test_compat')
    hub.update_scalar('train/loss', 0.5)
    hub.update_scalar('train/loss', np.float32(0.25).item())
    hub.update_info('names', ('a', 'b'))
    return dict(
        meta=dict(epoch=0, iter=3, seed=0),
        state_dict=collections.OrderedDict(weight=torch.arange(3.0)),
        optimizer=dict(state={}, param_groups=[dict(lr=0.1, betas=(0.9, 0.999))]),
        message_hub=hub.state_dict(),
        best=np.float64(0.5),
    )


def test_mmengine_checkpoint_with_history_loads(tmp_path):
    file = tmp_path / 'epoch.pth'
    save_checkpoint(mmengine_checkpoint(), str(file))
    loaded = CheckpointLoader.load_checkpoint(str(file), map_location='cpu')
    assert torch.equal(loaded['state_dict']['weight'], torch.arange(3.0))
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.data[0].tolist() == [0.5, 0.25]
    assert history.statistics('mean') == 0.375
    assert loaded['best'] == 0.5


def test_checkpoint_needs_the_repair(tmp_path):
    """Plain torch.load refuses such a file: the repair is needed, and it stays scoped."""
    file = tmp_path / 'epoch.pth'
    torch.save(mmengine_checkpoint(), file)
    allowed = set(torch.serialization.get_safe_globals())
    compat.load_checkpoint_file(file)
    assert set(torch.serialization.get_safe_globals()) == allowed
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)


class Payload:
    """Unpickles by calling a function of the attacker's choice."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_state(target):
    """Ways to write ``target`` while a checkpoint is loaded."""
    import builtins
    import os

    return {
        'exec': Payload(builtins.exec, f"open({str(target)!r}, 'w').write('x')"),
        'system': Payload(os.system, f'touch {target}'),
        'getattr': Payload(getattr, HistoryBuffer, '__init__'),
        'getattr_other': Payload(getattr, np.ndarray, 'mean'),
    }


@pytest.mark.parametrize('way', ['exec', 'system', 'getattr', 'getattr_other'])
@pytest.mark.parametrize('loader', ['mmengine', 'mmvim'])
def test_hostile_checkpoint_is_refused(tmp_path, way, loader):
    file, target = tmp_path / 'hostile.pth', tmp_path / 'written'
    torch.save(dict(state_dict={}, meta=hostile_state(target)[way]), file)
    load = {
        'mmengine': lambda: load_checkpoint(torch.nn.Linear(1, 1), str(file)),
        'mmvim': lambda: compat.load_checkpoint_file(file),
    }[loader]
    with pytest.raises(pickle.UnpicklingError):
        load()
    assert not target.exists()


def test_hostile_checkpoint_would_write_without_the_guard(tmp_path):
    """The attack above is a real one: an unsafe load runs it."""
    target = tmp_path / 'written'
    file = tmp_path / 'hostile.pth'
    torch.save(hostile_state(target)['exec'], file)
    torch.load(file, weights_only=False)
    assert target.read_text() == 'x'


def test_hostile_walk_to_globals_is_refused(tmp_path):
    """getattr(getattr(HistoryBuffer, '__init__'), '__globals__') opens every door; not here."""
    inner = (
        b'cbuiltins\ngetattr\n(cmmengine.logging.history_buffer\nHistoryBuffer\n'
        b'X\x08\x00\x00\x00__init__tR'
    )
    walk = b'\x80\x02cbuiltins\ngetattr\n(' + inner + b'X\x0b\x00\x00\x00__globals__tR.'
    assert isinstance(pickle.loads(walk), dict)  # with the plain getattr it works
    buffer = io.BytesIO()
    torch.save({}, buffer)
    file = tmp_path / 'hostile.pth'
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(file, 'w') as crafted:
        for name in source.namelist():
            data = walk if name.endswith('data.pkl') else source.read(name)
            crafted.writestr(name, data)
    with pytest.raises(pickle.UnpicklingError, match='__init__'):
        compat.load_checkpoint_file(file)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        compat.load_checkpoint_file(tmp_path / 'nowhere.pth')


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
    from mmvim import compat
    print('declared', compat._torchvision_library is not None)
"""


def test_torchvision_schemas_are_declared_after_that_very_failure():
    message = 'operator torchvision::nms does not exist'
    done = python(FAKE_TORCHVISION.format(times=1, message=message))
    assert done.stdout.strip() == 'declared True', done.stderr
    done = python(FAKE_TORCHVISION.format(times=0, message=message))
    assert done.stdout.strip() == 'declared False', done.stderr


def test_other_torchvision_failures_stay_visible():
    done = python(FAKE_TORCHVISION.format(times=1, message='libjpeg is broken'))
    assert done.returncode and 'libjpeg is broken' in done.stderr


def test_torchvision_imports_beside_mmvim():
    pytest.importorskip('torchvision')
    done = python('import mmvim, torchvision.transforms; print("fine")')
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
    done = python(BASE_OF_MMSEG, 'renamed')
    assert done.stdout.split() == ['mmseg', 'mmseg'], done.stderr


def test_name_of_mmsegs_distribution_stays_where_it_is_right():
    pytest.importorskip('mmseg')
    done = python(BASE_OF_MMSEG, 'standard')
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
    done = python(code, *names)
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
    done = python(code)
    message = done.stdout.strip()
    assert message.count('\n') == 0 and message.endswith('.'), (message, done.stderr)
    assert f'needs {name} >=' in message and 'pip install' in message
    assert ('not installed' if state == 'missing' else '0.1.0') in message


def test_found_by_its_scope_without_any_import():
    """The registries find mmvim by the name of its scope, with no custom_imports."""
    done = python(
        """
        import sys
        from mmengine.registry import MODELS, Registry
        library = Registry('model', parent=MODELS, scope='library', locations=[])
        assert 'mmvim' not in sys.modules
        print(type(library.build(dict(type='mmvim.VisionMamba', arch='nano'))).__name__)
        """
    )
    assert done.stdout.strip() == 'VisionMamba', done.stderr
