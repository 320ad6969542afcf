"""A full training by several processes that learn the same batches (docs/adr/0025).

`learn` starts a group on this machine and starts it again from its last checkpoint when a
process dies (`supervisor`; `group` is one life, `worker` a process). On a cluster each pod calls
`work` itself, and what restarts pods is the supervisor.
"""

from headrace.workers.job import Job
from headrace.workers.share import work
from headrace.workers.supervisor import learn, require_number

__all__ = ["Job", "learn", "require_number", "work"]
