"""The cluster: everything the operator needs of Kubernetes, and nothing about system VMs.

What lives here, one concept a module. Import the modules, not names from this package: the API client is
slow to import and only ``client`` needs it.

=============  =======================================================================================
``objects``    words of the API conventions: ``Object``, ``Key``, ``Resource``, ``ObjectRef``;
               conditions, owners, finalizers, no-op detection. Pure.
``errors``     what the API server (or the way to it) said, one class a reaction
``client``     ``Cluster``: dicts in, dicts out, every write through one door
``transport``  how a request gets there and what can go wrong; ``login`` who we are
``cache``      ``Store``: the write-through cache of one kind
``queue``      ``WorkQueue``: which key is worked on next, and never twice at once
``informer``   ``Relister``: the LIST that catches what the watch missed
``lease``      ``LeaderThread``: the lock of the operator and its epoch
``events``     ``EventRecorder``: Kubernetes Events that never hold anybody up
=============  =======================================================================================

The way through it::

    cluster = await Cluster.connect(kubeconfig=None)          # None: in the cluster
    vms = Store(SYSTEM_VM, project=SystemVM.model_validate, indices={"endpoint": lambda vm: [vm.spec.endpointRef.name]})
    cluster.attach(vms)                                       # answers to our own reads and writes go in at once
    vms.values("cloud", index="endpoint", value="prod")       # vms.entry(key) adds uid and resource_version, for CAS
    queue: WorkQueue[Key] = WorkQueue("systemvm")
    vms.subscribe(lambda change: queue.add(change.key))

    @kopf.on.event(...)                                       # in operator/: nothing but
    async def on_event(event, **_): vms.observe(event["type"], event["object"])

    await cluster.merge_patch(SYSTEM_VM, "cloud", "prod-r-4-vm", {"status": {...}}, subresource="status",
                              resource_version=vms.entry(key).resource_version)

    relister = Relister(cluster, vms, namespace="cloud")
    await relister.once()                                     # before the workers start
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(relister.run())
        tasks.create_task(queue.run(reconcile, workers=8))    # reconcile(key) -> Again | None; an exception backs off

May not come in: names of our own kinds, decisions, metrics or tracing (the observer protocols of ``client``, ``queue``
and ``events`` are how those look in), kopf.
"""
