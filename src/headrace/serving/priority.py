"""The thread that answers goes first: what else a server does is often on the same core."""

from __future__ import annotations

import logging
import os
import sys
import threading

LOG = logging.getLogger(__name__)


def step_back(nice: int) -> None:
    """Give the processor to the threads that answer, wherever both want it (Linux only).

    To be called in the thread that steps back; it may become nicer only. As a batch, a thread that
    wakes up waits for the one that answers to have finished, instead of halting it at once
    (https://man7.org/linux/man-pages/man7/sched.7.html).
    """
    if sys.platform == "linux":  # elsewhere the priority is the whole process's
        thread = threading.get_native_id()
        nice = max(os.getpriority(os.PRIO_PROCESS, thread), nice)  # less is for root alone
        os.setpriority(os.PRIO_PROCESS, thread, nice)
        try:
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
        except PermissionError as problem:  # in a sandbox
            LOG.info("%s may halt answers: %s", threading.current_thread().name, problem)
