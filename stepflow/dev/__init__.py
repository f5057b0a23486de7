"""`stepflow dev`: etcd and the services as child processes on this machine.

`mesh` starts, restarts and stops all processes; `services` has the command lines, `service_process` a single process,
`folder` and `ports` the resources; `etcd_binary` finds etcd or fetches it from Debian's packages (`debian`).
"""
