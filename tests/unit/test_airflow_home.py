"""What stands in `airflow.cfg`, as Airflow reads it."""

from __future__ import annotations

import configparser
from pathlib import Path
from urllib.parse import parse_qsl

from headrace.settings import load_settings
from headrace.stack.airflow_home import airflow_folder, write_airflow_home


def test_postgresql_ends_the_transactions_of_the_dead(tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:p%40ss@db:5433/airflow"
    settings = load_settings({"HEADRACE_HOME": str(tmp_path), "HEADRACE_AIRFLOW_DATABASE": url})
    write_airflow_home(settings, tmp_path)
    config = configparser.ConfigParser()
    config.read(airflow_folder(settings) / "airflow.cfg")
    found = config["database"]["sql_alchemy_conn"]
    assert found == config["database"]["sql_alchemy_conn_async"]
    asked, _, query = found.partition("?")
    assert asked == url
    assert parse_qsl(query) == [("options", "-c idle_in_transaction_session_timeout=30s")]
