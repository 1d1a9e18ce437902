"""The story of a whole cloud: found, patched, upgraded, recreated; with what it cost in calls and in tenants' traffic.

`python -m lab demo --cloud` tells it, and a system test tells it again. `objects` is what a person commits, `counting`
what the server was asked and what CloudStack's own way would have asked, `traffic` what tenants noticed, `story` the
acts in their order. Like `lab.demo` it knows the operator only by its chart and its objects.
"""
