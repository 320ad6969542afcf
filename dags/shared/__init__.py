"""What several DAG files need: the assets of a line, the steps of a training, the alarm.

Airflow reads no DAGs from here (`.airflowignore`). The folder above `dags` has to be on
`PYTHONPATH`, as `make up` and the images set it.
"""
