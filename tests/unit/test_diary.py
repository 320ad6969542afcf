"""What a diary tells of faults: who began what again, and when work went on."""

from __future__ import annotations

from pathlib import Path

from tests.diary import Diary, Work


def test_units_begun_again_and_the_time_to_the_next_one_done_are_told_by_fault(
    tmp_path: Path,
) -> None:
    path = tmp_path / "diary"
    lines = ["1 begins 7", "2 done 7", "3 begins 8", "6 begins 8", "8 done 8", "9 begins 9"]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert Work.between(path, [5.0, 8.5]) == Work([3.0], [1, 0])
    assert Work.between(path, [5.0, 5.5]) == Work([2.5], [0, 1])
    assert Work.between(path, []) == Work([], [])


def test_what_is_written_can_be_read_before_the_writer_ends(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "diary")
    diary.begins(1)
    diary.done(1)
    assert Work.between(tmp_path / "diary", [0.0]).repeated == [0]
    assert len(Work.of([Work.between(tmp_path / "diary", [0.0])]).recovered_s) == 1
