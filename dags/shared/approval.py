"""A person's yes before a rollback, with the versions that could serve again to choose from."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param
from airflow.sdk.definitions.param import ParamsDict

from dags.shared.notify import Alert
from headrace.declaration import LineSpec
from headrace.settings import load_settings

CHOICES: Final = 20


class ApproveVersion(ApprovalOperator):  # type: ignore[misc]
    """Waits for *Approve* or *Reject* where the line, or the form of the run, says so.

    Holds neither a process nor a slot. *Version* may be changed to another of the `CHOICES` newest
    champions. Rejected: what follows is skipped; no answer in time: red.
    """

    template_fields = (*ApprovalOperator.template_fields, "proposed")

    def __init__(self, *, spec: LineSpec, proposed: Any, **given: Any) -> None:
        super().__init__(
            subject=f"Serve an earlier version of {spec.line} again?",
            response_timeout=timedelta(microseconds=spec.rollback.wait),
            notifiers=[Alert(f"a rollback of {spec.line} waits for approval")],
            **given,
        )
        self.line, self.proposed, self.asks = spec.line, proposed, spec.rollback.approval

    def execute(self, context: Any) -> Any:
        """Go on at once where nobody is to be asked."""
        given = context["params"]
        if not self.asks and not given["choose"]:
            return {"params_input": {"version": self.proposed}}
        choices = self._choices()
        self.body = f"Asked for: {self.proposed}. {given['reason'] or ''}\n\n" + "\n".join(
            f"- {version}: {told}" for version, told in choices.items()
        )
        known = list(dict.fromkeys([self.proposed, *choices]))
        param = Param(self.proposed, type="string", enum=known, title="Version")
        self.params = ParamsDict({"version": param})
        return super().execute(context)

    def _choices(self) -> dict[str, str]:
        """The newest champions but the present one, and since when they served."""
        from headrace.events import stamp
        from headrace.line import LineStore

        store = LineStore(load_settings().line_store_url(self.line), self.line)
        found: dict[str, str] = {}
        for champion in store.earlier():
            found[champion.version] = f"{champion.action} at {stamp(champion.at_us)}"
            if len(found) == CHOICES:
                break
        return found
