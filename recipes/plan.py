"""What fits, before the launch: memory by part, tokens/s, days and cost, the cheapest layout, GRPO's split of GPUs.

    python recipes/plan.py experiment=falcon_h1r_7b
    python recipes/plan.py experiment=falcon_h1r_7b plan.num_gpus=8 gpu=h200
    python recipes/plan.py experiment=falcon_h1r_7b plan.num_gpus=64 engine.zero_stage=3 run_dir=runs/plan

Takes seconds and needs neither GPU nor weights. The layout that the engine section asks for is judged as asked; the
others are searched beside it. With `run_dir`, all of it is in plan.json there. The formulas: docs/plan.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config
from falcon_h1r.config_errors import CONFIG_ERRORS, one_line, refuse_unknown_keys
from falcon_h1r.entry import CONFIGS, USAGE_ERROR
from falcon_h1r.entry_sweep import sweep_if_asked


def main() -> None:
    """Not `run_recipe`: a plan is for ranks and settings that this machine need not have."""
    import os

    ConfigStore.instance().store(name="schema", node=Config)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors to us instead of printing its own summary
    composed: list[DictConfig] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def compose(config: DictConfig) -> None:
        composed.append(config)

    try:
        sweep_if_asked()
        compose()
        if composed:
            refuse_unknown_keys(composed[0])
            config = OmegaConf.to_object(composed[0])
            assert isinstance(config, Config)
            check_config(config)
            plan(config)
    except CONFIG_ERRORS as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def plan(config: Config) -> None:
    """Print the plan; write plan.json where there is a run_dir."""
    from falcon_h1r.model.load import planned_config
    from falcon_h1r.planning.report import plan_as_dict, render_plan
    from falcon_h1r.planning.search import Subject
    from falcon_h1r.planning.stages import check_plan, plan_grpo, plan_sft

    shape, _ = planned_config(config.model)
    subject = Subject.of(shape, config.model.lora)
    num_gpus = config.plan.num_gpus or config.launch.num_nodes * config.launch.num_processes
    check_plan(config, subject, num_gpus)
    sft = plan_sft(config, subject, num_gpus) if "sft" in config.plan.stages else None
    grpo = plan_grpo(config, subject, num_gpus) if "grpo" in config.plan.stages else None
    print(render_plan(config, subject, num_gpus, sft, grpo))
    if config.run_dir is not None:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(plan_as_dict(num_gpus, sft, grpo), indent=1) + "\n")


if __name__ == "__main__":
    main()
