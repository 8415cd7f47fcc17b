# What every detector with a TopoNet backbone runs with: the registration, the checks before the first step, the record
# of the edge weights.
custom_imports = dict(imports=['topodet.mmdet'], allow_failed_imports=False)
custom_hooks = [dict(type='TopoNetCheckHook'), dict(type='AlphaLogHook')]
