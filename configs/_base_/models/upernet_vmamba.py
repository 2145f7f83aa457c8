# mmseg's UperNet on VMamba's four maps, as it is on Swin's.
_base_ = ['../mmvim.py', 'mmseg::_base_/models/upernet_swin.py']
# Registers the backbone, also under mmseg's own tools.
custom_imports = dict(imports=['mmvim'], allow_failed_imports=False)
model = dict(
    # Whose types these are, also in a config that derives from this one by `mmvim::`.
    _scope_='mmseg',
    backbone=dict(_delete_=True, type='mmvim.VMamba', arch='tiny_s1l8', drop_path_rate=0.2),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
