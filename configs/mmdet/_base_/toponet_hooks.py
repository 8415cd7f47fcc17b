# Common to every detector with a TopoNet: the registration, the check of the detector against its backbone's weights
# file, and the record of the edge weights.
custom_imports = dict(imports=["topodet.mmdet"], allow_failed_imports=False)

custom_hooks = [dict(type="TopoNetCheckHook"), dict(type="AlphaLogHook")]
