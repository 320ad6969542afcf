"""A report inside Airflow: the link of the run leads to the page, for those who are signed in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dags.test_parse import answer

PAGE = "20261101T000000Z-20261102T000000Z.html"
SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
from types import SimpleNamespace
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient
from dags.shared.reporting import ReportLink
from headrace.settings import load_settings
spec = importlib.util.spec_from_file_location("headrace_page", "plugins/headrace_page.py")
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)
folder = load_settings().line_home("coupons") / "reports"
folder.mkdir(parents=True)
(folder / sys.argv[1]).write_text("<h1>Line coupons</h1>")
(folder.parent / "secret.html").write_text("no report")
options = {"start": "2026-11-01 00:00:00+00:00", "end": "2026-11-02T01:00:00+01:00"}
link = ReportLink().get_link(SimpleNamespace(options=options, line="coupons"), ti_key=None)
app = plugin.make_app()
client = TestClient(app)
path = link.partition("/headrace")[2]
told = {"link": link, "stranger": client.get(path).status_code}
app.dependency_overrides[get_user] = lambda: "somebody"
page = client.get(path)
told |= {"text": page.text, "policy": page.headers["content-security-policy"]}
others = ("/reports/coupons/1.html", "/reports/coupons/..%2Fsecret.html",
          "/reports/../reports/x.html", "/reports/coupons/secret.html")
told["others"] = [client.get(other).status_code for other in others]
print("ANSWER" + json.dumps(told))
"""


@pytest.mark.slow
def test_the_link_of_a_run_leads_to_its_page_and_to_nothing_else(tmp_path: Path) -> None:
    settings = {
        "HEADRACE_HOME": str(tmp_path / "home"),
        "AIRFLOW__API__BASE_URL": "http://127.0.0.1:8080/",
    }
    told = answer(tmp_path / "airflow", SCRIPT, PAGE, **settings)
    assert told["link"] == f"http://127.0.0.1:8080/headrace/reports/coupons/{PAGE}"
    assert told["stranger"] == 401
    assert told["text"] == "<h1>Line coupons</h1>"
    assert "default-src 'none'" in str(told["policy"])
    assert set(told["others"]) <= {404, 422}
