"""Airflow's own home: one `airflow.cfg` with every setting that matters, and its secrets.

Secrets are made at the first start and kept in files of mode 0600 below the home, never in
git and never in a process's environment. Because all settings stand in the file,
`AIRFLOW_HOME=<home>/airflow airflow …` works for people without further variables.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import psycopg

from headrace.errors import EnvironmentFault
from headrace.settings import PROJECT, TRAINING_POOL, Settings

USER = "admin"
IDLE_S = 30
"""A transaction whose process says nothing for so long is rolled back by PostgreSQL."""
PLUGINS = PROJECT / "plugins"
_SET_POOL = (
    "INSERT INTO slot_pool (pool, slots, description, include_deferred) VALUES ({}) "
    "ON CONFLICT (pool) DO UPDATE SET slots = excluded.slots"
)


def airflow_folder(settings: Settings) -> Path:
    """`AIRFLOW_HOME` of the stack."""
    return settings.home / "airflow"


def password(settings: Settings) -> str:
    """Password of the user `admin`. Raises `EnvironmentFault` before the first start."""
    path = _password_file(settings)
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[USER])
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{path}: no password yet, because no stack was ever started here; run `make up`"
        ) from None


def write_airflow_home(settings: Settings, dags: Path) -> None:
    """Write `airflow.cfg` for this machine; keep the secrets of an earlier start."""
    folder = airflow_folder(settings)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _password_file(settings).exists():
        _write_private(_password_file(settings), json.dumps({USER: secrets.token_urlsafe(12)}))
    config = configparser.ConfigParser(interpolation=None)
    # Airflow interpolates its file, so a percent sign in a path has to be doubled.
    config.read_dict(
        {
            section: {key: str(value).replace("%", "%%") for key, value in options.items()}
            for section, options in _options(settings, dags, _secrets(folder)).items()
        }
    )
    path = folder / "airflow.cfg"
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        config.write(file)
    temporary.replace(path)


def migrate(settings: Settings, environ: Mapping[str, str], log: Path) -> None:
    """Bring Airflow's database to this version; does nothing where that was done before.

    Raises `EnvironmentFault` naming the log when `airflow db migrate` fails.
    """
    folder = airflow_folder(settings)
    done, release = folder / "migrated", version("apache-airflow")
    if settings.airflow_database is not None:  # one that others may have emptied or replaced
        done.unlink(missing_ok=True)
    if done.exists() and done.read_text(encoding="utf-8") == release:
        return
    with log.open("ab") as output:
        result = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=dict(environ),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode != 0:
        raise EnvironmentFault(
            f"`airflow db migrate` ended with {result.returncode}; read {log}, then remove "
            f"{folder} to start with an empty Airflow (lines and models are kept elsewhere)"
        )
    if settings.airflow_database is not None:
        return
    with closing(sqlite3.connect(_database(folder))) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # kept in the file; readers never block
    done.write_text(release, encoding="utf-8")


def set_training_pool(settings: Settings) -> None:
    """Give Airflow the pool of heavy trainings, or its present size; the database is migrated.

    Written to the table itself: the scheduler starts no task whose pool is missing, a stack has
    no API server yet, and an `airflow pools set` would cost a start seconds.
    """
    row = (TRAINING_POOL, settings.training_slots, "trainings from scratch on this machine", False)
    url = settings.airflow_database
    if url is not None:
        with psycopg.connect(
            url.replace("postgresql+psycopg://", "postgresql://", 1)
        ) as connection:
            connection.execute(_SET_POOL.format("%s, %s, %s, %s"), row)
        return
    with closing(sqlite3.connect(_database(airflow_folder(settings)), timeout=30)) as connection:
        connection.execute(_SET_POOL.format("?, ?, ?, ?"), row)
        connection.commit()


def _options(
    settings: Settings, dags: Path, keys: Mapping[str, str]
) -> dict[str, dict[str, object]]:
    logs = settings.home / "logs" / "airflow"
    return {
        "core": {
            "executor": "LocalExecutor",
            "parallelism": 8,  # a worker can hold its slot 5 s longer than its task
            "mp_start_method": "fork",  # spawn doubles the CPU a task costs
            "dags_folder": dags,
            "plugins_folder": PLUGINS,
            "load_examples": False,
            "dags_are_paused_at_creation": False,
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": _password_file(settings),
            "fernet_key": keys["fernet_key"],
            "execution_api_server_url": f"{settings.airflow_url}/execution/",
        },
        "database": _connections(settings),
        "api": {
            "host": settings.host,
            "port": settings.airflow_port,
            "base_url": settings.airflow_url,
            "workers": 1,
            "secret_key": keys["secret_key"],
        },
        "api_auth": {"jwt_secret": keys["jwt_secret"]},
        # the first Execution API call takes 6-13 s against a default limit of 5 s
        "workers": {"execution_api_timeout": 60},
        # idle, it takes 0.09 of a slow core, 0.17 at 0.1 s; a cycle waits for it three times
        "scheduler": {"scheduler_idle_sleep_time": 0.25, "enable_health_check": False},
        "dag_processor": {
            "refresh_interval": 5,
            # each 30 s, the processor took 0.09 of a slow core with nothing to do
            "min_file_process_interval": 60,
            "parsing_processes": 1,
            "print_stats_interval": 300,
        },
        "logging": {
            "base_log_folder": logs,
            "dag_processor_child_process_log_directory": logs / "dag_processor",
        },
        "usage_data_collection": {"enabled": False},
    }


def _connections(settings: Settings) -> dict[str, object]:
    """Airflow's database; psycopg serves both kinds of connection.

    The executor's workers inherit the sockets of the scheduler. When it is killed in a transaction
    they live on, PostgreSQL takes the dead for idle and keeps its locks: nobody would ever look at
    a run again that it had locked. (PgBouncer wants `ignore_startup_parameters = options` for that,
    and has an `idle_transaction_timeout` of its own.)
    """
    url = settings.airflow_database
    if url is None:
        # SQLite has one writer: the others wait for it longer than the 5 s of its default
        return {"sql_alchemy_conn": f"sqlite:///{_database(airflow_folder(settings))}?timeout=30"}
    url += f"?options={quote(f'-c idle_in_transaction_session_timeout={IDLE_S}s')}"
    return {"sql_alchemy_conn": url, "sql_alchemy_conn_async": url}


def _secrets(folder: Path) -> dict[str, str]:
    path = folder / "secrets.json"
    if not path.exists():
        keys = {
            "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "secret_key": secrets.token_urlsafe(32),
            "jwt_secret": secrets.token_urlsafe(64),
        }
        _write_private(path, json.dumps(keys))
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def _password_file(settings: Settings) -> Path:
    return airflow_folder(settings) / "passwords.json"


def _database(folder: Path) -> Path:
    return folder / "airflow.db"
