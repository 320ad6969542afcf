"""Parity: what was served, recomputed from the event log and from history, bit by bit.

The recomputation shares the window kernel and `requests.transform` with the live path but none
of its state: it reads the event log, joins and counts afresh, and asks for each served row's
features at the very tick (`<view>__at`) whose row the server read. History, the rows that ticks
wrote, is joined as of that moment. So it finds what can differ: a lost, doubled or late push, a
restored state that is not the state, a formula that changed between two processes, a float that
did not survive a store; and it names the first cause (`causes.Cause`).
"""

from headrace.parity.causes import Cause
from headrace.parity.job import SHOWN, check, offset_of, offset_of_last
from headrace.parity.report import Mismatch, ParityReport

__all__ = ["SHOWN", "Cause", "Mismatch", "ParityReport", "check", "offset_of", "offset_of_last"]
