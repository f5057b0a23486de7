"""`stepflow dev`: etcd and the services as child processes on this machine.

`mesh` starts, restarts and stops them; `services` has their command lines, `service_process` one process, `folder` and
`ports` what they use; `etcd_binary` finds etcd or fetches it from Debian's packages (`debian`).
"""
