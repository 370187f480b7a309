"""What lies in the bucket: names, format, the log, snapshots."""

from littlebigcluster.epochs.codec import Entry
from littlebigcluster.epochs.log import Appended, AtHead, Gone, Log, Lost, Position, check_follows
from littlebigcluster.epochs.metadata import FORMAT_VERSION, Beacon, Identity, Leader, Metadata
from littlebigcluster.epochs.points import Point, find_epoch, metadata_of, moment, retained
from littlebigcluster.epochs.prefetch import in_order
from littlebigcluster.epochs.survey import (
    Survey,
    epoch_of,
    read_all_metadata,
    read_identity,
    read_metadata,
    survey,
    survey_all,
    unfinished,
)

__all__ = [
    "FORMAT_VERSION",
    "Appended",
    "AtHead",
    "Beacon",
    "Entry",
    "Gone",
    "Identity",
    "Leader",
    "Log",
    "Lost",
    "Metadata",
    "Point",
    "Position",
    "Survey",
    "check_follows",
    "epoch_of",
    "find_epoch",
    "in_order",
    "metadata_of",
    "moment",
    "read_all_metadata",
    "read_identity",
    "read_metadata",
    "retained",
    "survey",
    "survey_all",
    "unfinished",
]
