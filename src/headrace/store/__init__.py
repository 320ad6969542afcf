"""Feast: the one feature store of the offline and the online path."""

from headrace.store.repository import Store

__all__ = ["Store"]
