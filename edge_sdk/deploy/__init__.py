"""From the workstation to the boards: bundles sent over SSH, checked there, switched to in one step, and back.

On the board a :class:`~edge_sdk.deploy.store.Store` holds two slots; nothing here is imported by a model that runs.
"""
