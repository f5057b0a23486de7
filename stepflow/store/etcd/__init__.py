"""The store of a mesh, over etcd.

- `store`: `EtcdStore`.
- `config`: endpoints, TLS, login, key prefix.
- `client`: calls, channels, login.
- `errors`: the meaning of errors.
- `messages`: translation between the store's types and etcd's messages.
- `watch`: watches that survive their connections.
- `lease`: keep-alives from a thread.
- `members`: status and version of members.
- `metrics`: the metrics page of a member.
"""
