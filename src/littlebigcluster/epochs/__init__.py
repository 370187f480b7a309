"""What lies in the bucket: names, format, the log, snapshots."""

from littlebigcluster.epochs.codec import Entry
from littlebigcluster.epochs.log import (
    Appended,
    AtHead,
    Forgotten,
    Gone,
    Log,
    Lost,
    Position,
    check_follows,
    check_link,
)
from littlebigcluster.epochs.merged import (
    Span,
    check_merged,
    complete,
    end_of,
    fetch_merged,
    read_merged,
    span_of,
    steps,
)
from littlebigcluster.epochs.metadata import FORMAT_VERSION, Beacon, Identity, Leader, MergedMetadata, Metadata
from littlebigcluster.epochs.points import Point, find_epoch, metadata_of, moment, retained
from littlebigcluster.epochs.prefetch import in_order
from littlebigcluster.epochs.repairs import Repair, lost_is_told, read_repairs
from littlebigcluster.epochs.survey import (
    Survey,
    epoch_of,
    read_identity,
    read_metadata,
    survey,
    survey_after,
    survey_all,
    unfinished,
)

__all__ = [
    "FORMAT_VERSION",
    "Appended",
    "AtHead",
    "Beacon",
    "Entry",
    "Forgotten",
    "Gone",
    "Identity",
    "Leader",
    "Log",
    "Lost",
    "MergedMetadata",
    "Metadata",
    "Point",
    "Position",
    "Repair",
    "Span",
    "Survey",
    "check_follows",
    "check_link",
    "check_merged",
    "complete",
    "end_of",
    "epoch_of",
    "fetch_merged",
    "find_epoch",
    "in_order",
    "lost_is_told",
    "metadata_of",
    "moment",
    "read_identity",
    "read_merged",
    "read_metadata",
    "read_repairs",
    "retained",
    "span_of",
    "steps",
    "survey",
    "survey_after",
    "survey_all",
    "unfinished",
]
