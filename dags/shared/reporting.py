"""The task that writes a report, with a link from its run to the page inside Airflow."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink

from dags.shared.kubeflow import RunPipeline
from headrace.settings import load_settings


class ReportLink(BaseOperatorLink):  # type: ignore[misc]
    """*Report*: the page as the plugin of the line's page shows it to who is signed in."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The page's address; empty where it lies on a cluster's storage, with the run there."""
        from airflow.sdk.configuration import conf

        from headrace.events import moment
        from headrace.report.place import report_path

        settings, asked = load_settings(), operator.options
        if settings.kfp_endpoint is not None:
            return ""
        ends = (moment(name, asked[name]) for name in ("start", "end"))
        page = report_path(settings, operator.line, *ends).name
        return f"{conf.get('api', 'base_url').rstrip('/')}/headrace/reports/{operator.line}/{page}"


class WriteReport(RunPipeline):
    """`RunPipeline` of `write_report`."""

    operator_extra_links = (ReportLink(),)
