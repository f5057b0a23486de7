"""`stepflow dev`: etcd and the services as child processes on this machine.

- `mesh`: starts, restarts and stops all processes.
- `services`: command lines and readiness of the services.
- `service_process`: a single process.
- `folder`: the folder of a mesh, with one owner at a time.
- `host_logs`: log lines of component servers.
- `reload`: changed component files and configurations, applied to a running mesh.
- `sources`: the files that belong to a plugin.
- `file_states`: the state of these files.
- `file_watch`: waits for changes of these files.
- `ports`: free ports on loopback.
- `etcd_binary`: finds etcd, or fetches it.
- `debian`: fetches programs from Debian's packages.
"""
