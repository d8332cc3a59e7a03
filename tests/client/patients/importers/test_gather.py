from client.patients.importers.gather import Found, gather
from client.patients.records import PatientRecord, Problem


def found(patient_id: str, case_id: str, line: int | None) -> Found:
    record = PatientRecord(patient_id=patient_id, case_id=case_id, note="A note.")
    return Found(record=record, file="f", line=line)


def test_everything_met_is_a_record_or_a_problem_and_a_patient_met_again_names_the_first_place() -> None:
    bad = Problem(file="f", line=2, reason="expected JSON")
    again = [found("a", "3", 4), found("c", "2", 5)]
    result = gather([found("a", "1", 1), bad, found("b", "2", 3), *again, found("d", "4", None)])
    assert [record.patient_id for record in result.records] == ["a", "b", "d"]
    assert [str(problem) for problem in result.problems] == [
        "f:2: expected JSON",
        "f:4: patient_id: the same as line 1",
        "f:5: case_id: the same as line 3",
    ]


def test_a_patient_met_in_two_files_names_the_first_file() -> None:
    result = gather([found("a", "1", None), found("a", "1", None)])
    assert str(result.problems[0]) == "f: patient_id: the same as f"
