"""The only reader of the environment, and the parser of lines.

Settings are read once into a frozen value; a line's YAML becomes a `LineSpec` or a
`DeclarationError` that names the key, the value and the remedy.
"""

from headrace.settings.environment import PROFILES, PROJECT, java_command, load_settings
from headrace.settings.lines import find_line, load_line, load_lines
from headrace.settings.values import (
    TRAINING_POOL,
    Cluster,
    KafkaLog,
    KafkaSecurity,
    PodSecret,
    Settings,
)
from headrace.settings.variables import OFFLINE_STORES, RUNNERS

__all__ = [
    "OFFLINE_STORES",
    "PROFILES",
    "PROJECT",
    "RUNNERS",
    "TRAINING_POOL",
    "Cluster",
    "KafkaLog",
    "KafkaSecurity",
    "PodSecret",
    "Settings",
    "find_line",
    "java_command",
    "load_line",
    "load_lines",
    "load_settings",
]
