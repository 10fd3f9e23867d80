from trainers.diagnosis import causes
from trainers.diagnosis.findings import Finding, table, wrong


def test_a_table_without_causes_gives_their_room_to_the_rest():
    sound = Finding("a check", "as it should be " * 4, "all")
    bad = wrong("another", "2 of 3", "all", causes.STALE)
    assert "cause" not in table([sound], 100)
    assert all(len(line) <= 100 for line in table([sound, bad], 100).splitlines())
    assert "WRONG: 2 of 3" in table([sound, bad], 100)
    lines = {size: len(table(found, 100).splitlines()) for size, found in ((1, [sound]), (2, [sound, bad]))}
    assert lines[1] == 4  # the found text needs two lines of the wider column
    assert lines[2] > 8


def test_a_table_of_nothing_is_its_head():
    assert table([], 100).split()[:2] == ["check", "found"]
