"""Uploads an exported folder to the Hugging Face Hub."""

from pathlib import Path

from lightning_merge.errors import ConfigError, MergeError, one_line, printable


def push_to_hub(folder: str | Path, name: str, overwrite: bool = False) -> str:
    """Makes a repository `USER/NAME` of what `export` wrote to a folder, and returns its address.

    It may be there already only with `overwrite`.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigError(
            "--push_to_hub needs huggingface_hub: pip install 'lightning-merge[hub]'"
        ) from error
    hub = HfApi()
    try:
        hub.create_repo(repo_id=name, exist_ok=overwrite)
        made = hub.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message="Export by lightning_merge"
        )
    except MergeError:
        raise
    # Of the network, the server, the token and the name, each has errors of its own.
    except Exception as error:
        raise ConfigError(
            f"{folder} is written, but the Hub did not take it as {printable(name)} "
            f"({one_line(error)}): log in (hf auth login), choose another name, or add --overwrite "
            "where it is yours"
        ) from error
    return str(made)
