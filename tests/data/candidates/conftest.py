"""What tests of candidates share: files of earlier systems are read and written by the command."""

import json

import pytest

from data.candidate_groups import load_groups, main
from data.io.records import RecordError


@pytest.fixture
def convert(tmp_path):
    """Function: content of a JSON file, options for reading it and for writing it -> groups, what is written back."""

    def run(content, to: str, reading: tuple[str, ...] = (), writing: tuple[str, ...] = ()):
        paths = [tmp_path / name for name in ("in.json", "groups.jsonl", "out.json")]
        paths[0].write_text(json.dumps(content), encoding="utf-8")
        main(["--dataset_name", str(paths[0]), "--output", str(paths[1]), *reading])
        main(["--dataset_name", str(paths[1]), "--output", str(paths[2]), "--to", to, *writing])
        return load_groups(paths[1]), json.loads(paths[2].read_text(encoding="utf-8"))

    return run


@pytest.fixture
def problems_of(tmp_path):
    """Function: content of a JSON file -> what is wrong with it, without the path."""

    def run(content, **options) -> list[str]:
        path = tmp_path / "in.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        with pytest.raises(RecordError) as caught:
            load_groups(path, **options)
        return [problem.removeprefix(str(path)) for problem in caught.value.problems]

    return run
