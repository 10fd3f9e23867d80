"""What a report of a bug is told of the machine."""

from vlm_posttrain.environment import OPTIONAL, described, main


def test_versions_devices_and_optional_parts(monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", "https://me:hf_abcdefghijklmnop@host")
    main([])
    said = capsys.readouterr().out.splitlines()
    found = dict(described())
    assert (
        [line for line in said if not line.startswith(" ")]
        == [*found]
        == [
            "Versions",
            "Devices",
            "Optional",
            "Variables",
        ]
    )
    assert {"torch", "trl", "vlm-posttrain", "Python", "code"} <= dict(found["Versions"]).keys()
    assert "cores" in dict(found["Devices"])["CPU"]
    assert dict(found["Optional"]).keys() == OPTIONAL.keys()
    assert dict(found["Optional"])["vllm"] == "not installed (rollouts at scale: use_vllm)"
    assert "  HF_HOME: https://***@host" in said
