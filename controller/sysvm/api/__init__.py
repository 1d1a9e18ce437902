"""The contract: the objects people write and the operator answers in (`sysvm.io/v1alpha1`).

Models, names, reasons and nothing else. `crds/*.yaml` is generated from here; no module here imports another layer.
"""
