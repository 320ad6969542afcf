"""The supervised stack of one line: `up`, `down`, `status`, `running`, and Airflow's REST API."""

from headrace.stack.airflow_client import AirflowClient
from headrace.stack.lifecycle import (
    check_disk,
    check_ports,
    down,
    running,
    status,
    up,
    write_line,
)
from headrace.stack.record import Stack
from headrace.stack.services import Service, services

__all__ = [
    "AirflowClient",
    "Service",
    "Stack",
    "check_disk",
    "check_ports",
    "down",
    "running",
    "services",
    "status",
    "up",
    "write_line",
]
