"""What became of a changed configuration, as lifecycle events. Pure."""

from __future__ import annotations

import hashlib

from maestro.event.v1.event_pb2 import ConfigProblem, ConfigRejected
from maestro_sdk.service.config_file import ConfigError, Problem
from maestro_sdk.service.settings import Config


def digest_of(config: Config) -> str:
    """SHA-256 of a configuration; two that mean the same have the same."""
    return hashlib.sha256(config.to_yaml().encode()).hexdigest()


def rejected(service: str, config: Config, error: ConfigError) -> ConfigRejected:
    """A service refused a changed file for every problem of `error`, and keeps `config`."""
    problems = [_problem(problem) for problem in error.problems]
    return ConfigRejected(service=service, digest=digest_of(config), problems=problems)


def _problem(problem: Problem) -> ConfigProblem:
    file, _, line = problem.place.rpartition(":")
    return ConfigProblem(
        file=file or problem.place,
        line=int(line) if file and line.isdecimal() else None,
        path=problem.path,
        message=problem.message,
    )
