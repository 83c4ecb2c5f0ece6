"""Labels from people, through files: batches go out, labels come in. NumPy only."""

from jaxvl.active.human.export import Batch, export_batch
from jaxvl.active.human.labels import Imported, merge_records, read_labels
from jaxvl.active.human.vqa_json import write_vqa

__all__ = ["Batch", "Imported", "export_batch", "merge_records", "read_labels", "write_vqa"]
