"""The error families."""

from stepflow import errors


def test_the_former_names_of_errors_are_the_same_classes() -> None:
    assert errors.Exists is errors.AlreadyExists
    assert errors.Refused is errors.FailedPrecondition
    assert errors.Deadline is errors.DeadlineExceeded
