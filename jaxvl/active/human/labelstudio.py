"""Label Studio: a project's tasks and labelling interface, and its JSON exports.

Files are exchanged: tasks are imported into a project by hand, its JSON export is read here. No server is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from jaxvl.active.human.entries import KINDS, STATUS, Asked, Entry, Fields, Given, Problems
from jaxvl.active.report.balance import question_key

LOCAL = (
    "/data/local-files/?d={file_name}"  # of a server with local files, its document root the batch's folder
)


def tasks(
    entries: Sequence[Mapping[str, Any]], *, questions: int, uncertainty: Mapping[int, float] | None
) -> list[dict[str, Any]]:
    """Tasks of a batch: sort them by `al_rank` in the Data Manager.

    Args:
      entries: lines of `batch.jsonl`.
      questions: slots that the interface has.
      uncertainty: of images (of questions, if these go out), where it is known; None = annotators must not see scores.
    """
    out = []
    for e in entries:
        image = e["url"] or (LOCAL.format(file_name=e["file_name"]) if e["file_name"] else "")
        data: dict[str, Any] = {"image": image, "image_id": e["image_id"], "al_rank": e["rank"]}
        suggested = [s["question"] for s in e["suggested"]][:questions]
        if "question_id" in e:
            data |= {"question_id": e["question_id"], "question": e["question"]}
        if uncertainty is not None:
            data |= {
                "al_score": e["score"],
                "uncertainty": uncertainty.get(e.get("question_id", e["image_id"])),
            }
        for k in range(questions):
            data[f"suggested_{k + 1}"] = suggested[k] if k < len(suggested) else ""
        out.append(
            {"data": data, "meta": {"run": e["run"], "round": e["round"], "reserve": bool(e.get("reserve"))}}
        )
    return out


def config(*, questions: int, suggest: bool, given: bool = False) -> str:
    """The labelling interface: the image, and fields for as many questions, answers and answer types.

    Args:
      questions: how many.
      suggest: show the suggested questions above their fields.
      given: a task comes with its one question, and asks for the answer only.
    """
    lines = [
        "<View>",
        '  <View style="display: flex; gap: 24px; align-items: flex-start">',
        '    <View style="flex: 1 1 50%; position: sticky; top: 0">',
        '      <Image name="image" value="$image" zoom="true" zoomControl="true"/>',
        '      <Choices name="status" toName="image" choice="single" showInline="true">',
        *(f"        <Choice value={quoteattr(s.replace('_', ' '))}/>" for s in STATUS),
        "      </Choices>",
        "    </View>",
        '    <View style="flex: 1 1 50%">',
    ]
    fields = [("q", "a question about this image"), ("a", "its answer, a word or a few")]
    for k in range(1, questions + 1):
        lines.append(
            '      <Header value="$question"/>' if given else f'      <Header value="Question {k}" size="5"/>'
        )
        if suggest and not given:
            lines.append(f'      <Text name="s_{k}" value="$suggested_{k}"/>')
        for name, hint in fields[1:] if given else fields:
            most = 1 if name == "q" else 10
            lines.append(
                f'      <TextArea name="{name}_{k}" toName="image" rows="1" maxSubmissions="{most}" '
                f'editable="true" showSubmitButton="false" placeholder={quoteattr(hint)}/>'
            )
        lines.append(f'      <Choices name="type_{k}" toName="image" choice="single" showInline="true">')
        lines += [f"        <Choice value={quoteattr(kind)}/>" for kind in KINDS]
        lines.append("      </Choices>")
    return "\n".join([*lines, "    </View>", "  </View>", "</View>", ""])


def parse(content: Any, problems: Problems) -> list[Entry]:
    """Entries of a JSON export: one for each annotation, "skip" for cancelled ones.

    A slot's answer field may hold several texts: several answers of that annotator. Seconds are shared evenly.
    """
    if not isinstance(content, list):
        return []
    entries = []
    for place, task in enumerate(content, start=1):
        where = f"task {place}"
        data = task.get("data") if isinstance(task, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(task.get("annotations"), list):
            problems.add(
                where,
                "annotations",
                "is missing",
                "Export as JSON (not JSON-MIN): tasks with 'data' and 'annotations'.",
            )
            continue
        head = Fields(data, where, problems, "data.")
        image_id, item = head.integer("image_id"), head.integer("question_id", needed=False)
        if image_id is None:
            continue
        given = str(data.get("question")) if item is not None else None
        for n, annotation in enumerate(task["annotations"], start=1):
            if not isinstance(annotation, Mapping):
                problems.add(f"{where}, annotation {n}", "-", "is no object", "Export the project again.")
                continue
            entry = _entry(annotation, image_id, f"{where}, annotation {n}", problems, given)
            if entry is not None:
                asked = [a._replace(question_id=item) for a in entry.asked]
                entries.append(entry._replace(asked=asked, question_id=item))
    return entries


def _entry(
    annotation: Mapping[str, Any], image_id: int, where: str, problems: Problems, given: str | None
) -> Entry | None:
    """What an annotation says of an image, or of the question `given` in the task."""
    before = len(problems.lines)
    if annotation.get("was_cancelled"):
        return Entry(where, image_id, "skip", [])
    slots = _slots(annotation, where, problems)
    if given is not None and "a_1" in slots:
        slots["q_1"] = [given]
    status = (slots.get("status") or ["ok"])[0].replace(" ", "_")
    if status not in STATUS:
        problems.add(where, "status", f"is {status!r}", f"The interface offers {', '.join(STATUS)}.")
    if status != "ok":
        return Entry(where, image_id, status, []) if len(problems.lines) == before else None
    who = annotation.get("completed_by")
    who = who.get("email") or who.get("id") if isinstance(who, Mapping) else who
    who = None if who is None else str(who).replace("#", "_")  # which numbers several answers of one person
    asked = []
    for k in sorted({int(name[2:]) for name in slots if name[:2] in ("q_", "a_") and name[2:].isdigit()}):
        one = _question(slots, k, who, where, problems)
        if one is not None:
            asked.append(one)
    if not asked and len(problems.lines) == before:
        what = ("q_1", "no question was written") if given is None else ("a_1", "no answer was written")
        problems.add(where, *what, "Write one, or choose the status 'skip'.")
    seconds = Fields(annotation, where, problems).seconds("lead_time")
    if len(problems.lines) > before:
        return None
    if seconds is not None:
        share = seconds / sum(len(a.answers) for a in asked)
        asked = [a._replace(answers=[g._replace(seconds=share) for g in a.answers]) for a in asked]
    return Entry(where, image_id, "ok", asked)


def _slots(annotation: Mapping[str, Any], where: str, problems: Problems) -> dict[str, list[str]]:
    """Field name -> the texts or choices in it, blank ones left out."""
    out: dict[str, list[str]] = {}
    for item in Fields(annotation, where, problems).rows("result", empty=True):
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind not in ("textarea", "choices"):
            continue
        name, value = item.get("from_name"), item.get("value")
        texts = value.get("text" if kind == "textarea" else "choices") if isinstance(value, Mapping) else None
        texts = [texts] if isinstance(texts, str) else texts
        if (
            not isinstance(name, str)
            or not isinstance(texts, list)
            or not all(isinstance(t, str) for t in texts)
        ):
            problems.add(where, "result", f"{kind} without from_name or texts", "Export the project again.")
            continue
        out.setdefault(name, []).extend(" ".join(t.split()) for t in texts if t.strip())
    return {name: texts for name, texts in out.items() if texts}


def _question(
    slots: Mapping[str, Sequence[str]], k: int, who: str | None, where: str, problems: Problems
) -> Asked | None:
    questions, answers = slots.get(f"q_{k}", []), slots.get(f"a_{k}", [])
    if len(questions) != 1 or not question_key(questions[0]):
        what = f"{len(questions)} questions" if len(questions) != 1 else "a question without a word"
        problems.add(
            where, f"q_{k}", f"has {what} for {len(answers)} answers", "Each slot holds one question."
        )
        return None
    if not answers:
        problems.add(
            where, f"a_{k}", "is empty, but its question is not", "Answer the question or remove it."
        )
        return None
    kind = next(iter(slots.get(f"type_{k}", [])), None)
    if kind is not None and kind not in KINDS:
        problems.add(where, f"type_{k}", f"is {kind!r}", f"The interface offers {', '.join(KINDS)}.")
        return None
    return Asked(questions[0], [Given(a, who) for a in answers], kind)
