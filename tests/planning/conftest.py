"""Composed configs, and what is planned for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from falcon_h1r import entry
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config
from falcon_h1r.entry import CONFIGS
from falcon_h1r.model.load import planned_config
from falcon_h1r.planning.search import Subject

Composed = Callable[..., Config]


@cache
def _composed(*overrides: str) -> Config:
    entry.store_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    check_config(config)
    return config


@pytest.fixture(scope="session")
def composed() -> Composed:
    return _composed


@pytest.fixture(scope="session")
def subject_7b() -> Subject:
    config = _composed("experiment=falcon_h1r_7b")
    return Subject.of(planned_config(config.model)[0], config.model.lora)
