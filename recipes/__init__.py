"""The stages as commands. Each file is a Hydra entry point; `pipeline` is their composition."""
