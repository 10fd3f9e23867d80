"""What libraries say of a model becomes one message for the user; commands have no handlers of their own for it."""

import ast
import errno

import pytest
from places import ROOT

from data.cli.commands import ending
from models.embeddings import load_encoder
from models.errors import ModelError
from models.factors.predictor import load_factor_predictor
from models.families.loading import load_vlm
from models.model_paths import loading
from models.selectors.load import has_encoders


@pytest.mark.parametrize("load", [load_encoder, load_factor_predictor, load_vlm, has_encoders])
@pytest.mark.parametrize("content", [None, "{}", "not JSON", '{"model_type": "resnet", "architectures": []}'])
def test_a_folder_without_the_right_model_is_a_user_error(load, content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    if load is has_encoders and content is not None and "resnet" in content:
        assert not has_encoders(str(tmp_path))
        return
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path))
    status, message = ending(caught.value)
    assert (status, message.startswith(f"error: {tmp_path}: ")) == (1, True)


def test_what_the_machine_refuses_stays_what_it_is():
    with pytest.raises(PermissionError), loading("a"):
        raise PermissionError(errno.EACCES, "Permission denied", "a/config.json")
    inner = ModelError("a: is something else")
    with pytest.raises(ModelError) as caught, loading("a"):
        raise inner
    assert caught.value is inner


def test_commands_leave_user_errors_to_their_decorator():
    """Those that list all problems of a file may add a line to them."""
    found = []
    for path in sorted(
        path for room in ("models", "rewards", "rollouts", "trainers") for path in ROOT.glob(f"{room}/*")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.suffix == ".py" else ():
            if isinstance(node, ast.ExceptHandler) and "sys.exit(f'error" in ast.unparse(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
