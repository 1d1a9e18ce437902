"""What a patch costs tenants: the same change, on identical system VMs, made by us and made CloudStack's way.

Stands beside the lab and not in it, because it is the one place that drives the product's own code against the lab's
VMs. ``python -m traffic`` prints the table and fails where ours loses what its own plan promised to keep.

``scenarios``  what changes, on which VMs, and how one sees that it works
``ways``       the two ways to make the change
``measuring``  one scenario, one way: fresh VMs, traffic, the change, what was lost
``verdicts``   which loss breaks a promise (pure)
``table``      the results as text (pure)
"""
