"""The store of a mesh, over etcd. `store` has `EtcdStore`, `config` how to reach an etcd.

Below them: `client` (calls, channels, errors), `messages` (translation), `members` (status and version), `metrics`,
`watch`, and `lease` (keep-alives from a thread).
"""
