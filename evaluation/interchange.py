"""Interchange interventions: which activations of a network carry what its answer depends on.

A document is corrupted in one item, and the network reads it while one of its activations, a site at the position of an
item, has the value which it has in the clean document. That is a cell:

    (site, item) of a corruption -> the runs of the network that it needs -> probability, logit and KL of each document

Few cells need a run through all layers:
* A patch changes nothing if the value is the same in both runs, if it is at a position before the corrupted item or
  after the question, or if it is after the last mixer at any other position than that of the question.
* A patch of the input of the first layer at the corrupted item, or of the output of the last layer at the question,
  gives the clean run.
* A patch after the mixer of layer l is one of the input of layer l + 1 at the same position: what follows the mixer
  computes each position alone.
* A patch of the input of layer l, or of its mixer, leaves the layers before l as they are in the corrupted run.
  These patches are stacked into large batches and computed from layer l on; what follows the last mixer is
  computed where the question is, alone.
* Some cells have the same effects as others, see `patched_sites` and `_Patching._same`.

Source: Arora et al., "Mechanistic evaluation of Transformers and state space models" (2025), section 4; Geiger et al.,
"Causal abstractions of neural networks" (2021).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Scored, Scores
from datasets.schema import Schema
from datasets.synthetic.language import ANSWER, ORIGINAL, QUERY, TARGET
from datasets.task import Task
from evaluation.bootstrap import averages, ratios, resamples
from evaluation.subject import DOCUMENTS, Subject, schema_lacks
from net.multihead import MultiHead
from net.sequences.model import SequenceModel
from net.sequences.sites import run
from utils.seeding import generator

DEFINED = 0.05  # by how much a corruption must lower the probability of the answer, so that there are associations
SITE = "blocks.1.input"  # of the associations with names
INDUCTION, EARLY, LATE = NAMED = ("induction", "direct early", "direct late")
RESAMPLES = 1000
MEASURES = ("probability", "logit", "kl")
# Bytes of the residual streams that are computed together. A CPU is fastest where activations stay in its caches.
_BYTES, _BYTES_CPU = 64 << 20, 1 << 20


class AskedDocuments(NamedTuple):
    """B documents with their questions."""

    inputs: Tensor  # [B, L + 1], tokens and the position of the question
    answers: Tensor  # [B], the right ones
    schema: Schema


class Effects(NamedTuple):
    """What patches do to the answers to B corrupted documents: each of MEASURES, the last against the corrupted run."""

    clean: Tensor  # [B, 3]
    corrupted: Tensor  # [B, 3]
    restored: dict[tuple[str, str], Tensor]  # by site and item, [B, 3]


class _Run(NamedTuple):
    """What a network computed of B documents."""

    outputs: Tensor  # [B, V], where the question is
    activations: Mapping[str, Tensor]  # by site, [B, L, d]


class _Entry(NamedTuple):
    """The patches of a site at I items of B documents, as what they make of the input of a layer."""

    layer: int  # that of the outputs is the one behind the last
    stream: Tensor  # [I, B, d], the residual stream at the position of the item
    normed: Tensor  # [I, B, d], what the mixer of the layer gets there
    matters: Tensor  # [I, B], whether the answer can depend on it


@torch.no_grad()
def interchange(subject: Subject) -> Scores:
    """How much of the answer each activation restores, means over documents; see the names in docs/metrics.md.

        association = mean(P_patched - P_corrupted) / (mean P_clean - mean P_corrupted)

    P is the probability of the right answer; bootstrapped over documents. There is none if the denominator is below
    DEFINED. The network computes in single precision, because differences of probabilities are small.
    """
    data, net = _chosen(subject), subject.net.trunk
    assert isinstance(net, SequenceModel)
    drawn = resamples(len(data.inputs), RESAMPLES, generator(0, "interchange", "bootstrap"))
    columns, found = dict[str, Tensor](), dict[str, Scored]()
    same = patched_sites(net)
    for item, effects in intervened(net, data).items():
        # Those that are not the same as others, and not what stands behind the question, which changes nothing.
        cells = effects.restored.items()
        shown = {(site, place): values for (site, place), values in cells if same[site] == site and place != ANSWER}
        effects = effects._replace(restored=shown)
        columns["probability"], columns["logit"] = effects.clean[:, :2].T
        columns |= {f"corrupted {name} of {item}": effects.corrupted[:, i] for i, name in enumerate(MEASURES[:2])}
        for (site, place), values in effects.restored.items():
            columns |= {f"restored {name} {site}@{place} of {item}": values[:, i] for i, name in enumerate(MEASURES)}
        found |= _associations(effects, item, drawn, named_cells(data.schema))
    return averages(columns) | found


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network about a task; "" if it can."""
    if not isinstance(net.trunk, SequenceModel) or not net.trunk.tokens:
        return "only networks of sequence mixers that read tokens, model: sequence, have these sites"
    return schema_lacks(task)


def patched_sites(net: SequenceModel) -> dict[str, str]:
    """The sites that are patched, in the order of computation, and for each the one that has the same effects."""
    sites = [site for site in net.sites() if not site.endswith(".heads")]
    found = {}
    for site in sites:
        layer, part = _parts(site)
        follower = f"blocks.{layer + 1}.input"
        same = {"output": follower if follower in sites else site, "state.input": f"blocks.{layer}.state.output"}
        found[site] = same.get(part, site)
    return found


@torch.no_grad()
def intervened(net: SequenceModel, documents: AskedDocuments) -> dict[str, Effects]:
    """The effects of all patches, by corrupted item: those of the schema that can be replaced.

    Patched are the sites of the residual stream, the mixers and the state mixers at the items which all documents have.
    """
    items = [item for item, places in documents.schema.positions.items() if bool((places >= 0).all())]
    corruptions, same = documents.schema.replacements, patched_sites(net)
    parts = dict[str, list[tuple[Tensor, ...]]]()
    for part in _split(net, documents):
        clean = _ran(net, part.inputs)
        for corrupted in corruptions:
            parts.setdefault(corrupted, []).append(_Patching(net, part, items, clean, corrupted).measured())
    numbers = {site: number for number, site in enumerate(dict.fromkeys(same.values()))}
    found = dict[str, Effects]()
    for corrupted, measured in parts.items():
        whole, broken, restored = (torch.cat(column, -2) for column in zip(*measured, strict=True))
        cells = {(site, item): restored[numbers[same[site]], i] for site in same for i, item in enumerate(items)}
        found[corrupted] = Effects(whole, broken, cells)
    return found


class _Patching:
    """All patches of one corruption of some documents."""

    def __init__(
        self, net: SequenceModel, documents: AskedDocuments, items: list[str], clean: _Run, corrupted: str
    ) -> None:  # fmt: skip
        self.net, self.documents, self.clean = net, documents, clean
        self.blocks: list[Any] = list(net.blocks)
        schema = documents.schema
        self.source, self.asked = schema.positions[corrupted], documents.inputs[:, -1]
        self.places = torch.stack([schema.positions[item] for item in items])
        replacements = schema.replacements[corrupted].unsqueeze(1)
        self.corrupted = _ran(net, documents.inputs.scatter(1, self.source.unsqueeze(1), replacements))
        self.reference = self.corrupted.outputs.log_softmax(-1)
        self.rows = torch.arange(len(self.asked), device=self.asked.device)

    def measured(self) -> tuple[Tensor, ...]:
        """Measures of the clean and the corrupted runs, [B, 3], and of the patches of distinct sites, [S, I, B, 3]."""
        clean, corrupted = (self._measures(ran.outputs, self.rows) for ran in (self.clean, self.corrupted))
        sites, same = list(dict.fromkeys(patched_sites(self.net).values())), self._same()
        found = corrupted.repeat(len(sites), len(self.places), 1, 1)  # what changes nothing
        entries = [self._entry(site) for site in sites]
        for site, (_, where) in same.items():
            entries[sites.index(site)].matters.masked_fill_(where, False)
        for number in (0, -1):  # all that the answer depends on
            found[number] = clean.where(entries[number].matters.unsqueeze(-1), corrupted)
        for layer in range(len(self.blocks) + 1):
            chosen = [number for number in range(1, len(sites) - 1) if entries[number].layer == layer]
            if chosen:
                found[chosen] = self._layer(layer, [entries[number] for number in chosen], found[chosen])
        for site, (other, where) in same.items():
            place = sites.index(site)
            found[place] = found[sites.index(other)].where(where.unsqueeze(-1), found[place])
        return clean, corrupted, found

    def _same(self) -> dict[str, tuple[str, Tensor]]:
        """By site another one, and where their patches have the same effects, [I, B].

        What enters a layer and is the same in both runs: then the mixer's output alone decides what leaves it there.
        What enters the last layer where no question is: it is read by the mixer alone.
        """
        found, names = dict[str, tuple[str, Tensor]](), patched_sites(self.net)
        for layer in range(len(self.blocks)):
            name = f"blocks.{layer}"
            before, after = (self._at_items(ran.activations[f"{name}.input"]) for ran in (self.clean, self.corrupted))
            found[f"{name}.mixer.output"] = names[f"{name}.output"], (before == after).all(-1)
        found[f"{name}.mixer.input"] = f"{name}.input", self.places != self.asked
        return found

    def _layer(self, layer: int, entries: list[_Entry], found: Tensor) -> Tensor:
        """Measures of patches that enter at one layer, [S, I, B, 3]; `found` has those of what changes nothing."""
        stream, normed, matters = (
            torch.stack(column) for column in zip(*(entry[1:] for entry in entries), strict=True)
        )
        cells = matters.nonzero()
        cells = cells[self.asked[cells[:, 2]].argsort(stable=True)]  # those computed together are equally long
        for part in cells.split(_together(self.net, self.documents)) if len(cells) else ():
            s, i, b = part.unbind(1)
            outputs = self._outputs(layer, b, self.places[i, b], stream[s, i, b], normed[s, i, b])
            found[s, i, b] = self._measures(outputs, b)
        return found

    def _entry(self, site: str) -> _Entry:
        """What a site that has its value of the clean run makes of the input of its layer, or of the next one."""
        layer, part = _parts(site)
        block, last = self.blocks[layer], layer + 1 == len(self.blocks)
        new, old = (self._at_items(ran.activations[site]) for ran in (self.clean, self.corrupted))
        stream, mixed = (
            self._at_items(self.corrupted.activations[f"blocks.{layer}.{name}"]) for name in ("input", "mixer.output")
        )
        # Before the corrupted item both runs are the same, but for the order in which convolutions add.
        matters = (new != old).any(-1) & (self.places >= self.source) & (self.places <= self.asked)
        if part == "input":
            return _Entry(layer, new, self._at_items(self.clean.activations[f"blocks.{layer}.mixer.input"]), matters)
        if part == "mixer.input":
            return _Entry(layer, stream, new, matters)
        after = new if part == "output" else stream + mixed + new
        if part == "mixer.output":
            after = block.mixed_states(stream + new)
        if last:
            return _Entry(layer + 1, after, after, matters & (self.places == self.asked))
        return _Entry(layer + 1, after, self.blocks[layer + 1].mixer_norm(after), matters)

    def _at_items(self, activations: Tensor) -> Tensor:
        """Activations [B, L, d] at the items, [I, B, d]."""
        return activations[self.rows, self.places]

    def _outputs(self, layer: int, documents: Tensor, places: Tensor, values: Tensor, normed_values: Tensor) -> Tensor:
        """The outputs [R, V] of corrupted runs whose input of a layer is changed at one position.

        Args:
            documents, places: [R], of which documents, and where they are changed.
            values, normed_values: [R, d], the residual stream there, and what the mixer gets.
        """
        if layer == len(self.blocks):
            return self.net.outputs_at(values)
        asked = self.asked[documents]
        rows, end = torch.arange(len(asked), device=asked.device), int(asked.max()) + 1
        stream, normed = (
            self.corrupted.activations[f"blocks.{layer}.{name}"][documents, :end].index_put((rows, places), changed)
            for name, changed in (("input", values), ("mixer.input", normed_values))
        )
        *blocks, last = self.blocks[layer:]
        for block, following in zip(blocks, self.blocks[layer + 1 :], strict=True):
            stream = block.mixed_states(stream + block.mixer(normed))
            normed = following.mixer_norm(stream)
        return self.net.outputs_at(last.mixed_states(stream[rows, asked] + last.mixer(normed)[rows, asked]))

    def _measures(self, outputs: Tensor, documents: Tensor) -> Tensor:
        """Each of MEASURES, [R, 3], of outputs [R, V] for documents [R]."""
        logs, right = outputs.log_softmax(-1), self.documents.answers[documents].unsqueeze(1)
        kl = (logs.exp() * (logs - self.reference[documents])).sum(-1, keepdim=True)
        return torch.cat([logs.gather(1, right).exp(), outputs.gather(1, right), kl], 1)


def _ran(net: SequenceModel, inputs: Tensor) -> _Run:
    outputs, activations = run(net, inputs, read=net.sites())
    return _Run(outputs.squeeze(1), activations)


def named_cells(schema: Schema) -> dict[tuple[str, str, str], str]:
    """The associations that have names, by site, item and corrupted item.

    Induction: the second layer gets at the later one of original query and target what tells the earlier one. There is
    none where their order is not the same in all documents. Direct retrieval: what tells the original query is already
    at the query, or still where it stood, which is asked where the target stands behind it: else it stands where
    induction would bring the target.
    """
    original, target = schema.positions[ORIGINAL], schema.positions[TARGET]
    found = {(SITE, QUERY, ORIGINAL): EARLY}
    if bool((original < target).all()):
        found |= {(SITE, TARGET, ORIGINAL): INDUCTION, (SITE, ORIGINAL, ORIGINAL): LATE}
    elif bool((target < original).all()):
        found |= {(SITE, ORIGINAL, TARGET): INDUCTION}
    return found


def _associations(
    effects: Effects, item: str, drawn: Tensor, names: Mapping[tuple[str, str, str], str]
) -> dict[str, Scored]:  # fmt: skip
    """The associations of all cells, and those with names of their own."""
    clean, corrupted = (values[:, 0].cpu().double() for values in effects[:2])
    if float((clean - corrupted).mean()) < DEFINED:
        return {}
    restored = torch.stack([values[:, 0] for values in effects.restored.values()]).cpu().double()
    found, count = dict[str, Scored](), len(clean)
    table = ratios(restored - corrupted, clean - corrupted, drawn).tolist()
    for (site, place), (value, error, low, high) in zip(effects.restored, table, strict=True):
        cell = f"{site}@{place} of {item}"
        found[f"association {cell}"] = Scored(value, error, count)
        found[f"association low {cell}"] = Scored(low, None, count)
        found[f"association high {cell}"] = Scored(high, None, count)
        if name := names.get((site, place, item)):
            found[name] = Scored(value, error, count)
            found[f"{name} low"], found[f"{name} high"] = Scored(low, None, count), Scored(high, None, count)
    return found


def _chosen(subject: Subject) -> AskedDocuments:
    """At most DOCUMENTS documents, evenly."""
    examples = subject.some(DOCUMENTS)
    assert examples.schema is not None  # see `obstacle`
    data = Mixture([(subject.task.id, examples)])
    inputs = subject.spec.preprocess(data.inputs(slice(0, len(data))))
    return AskedDocuments(inputs, examples.targets.squeeze(1), examples.schema.rows(examples.rows).to(inputs.device))


def _split(net: SequenceModel, documents: AskedDocuments) -> Iterator[AskedDocuments]:
    """Parts of documents whose runs are computed together."""
    size = _together(net, documents)
    for rows in torch.arange(len(documents.inputs), device=documents.inputs.device).split(size):
        yield AskedDocuments(documents.inputs[rows], documents.answers[rows], documents.schema.rows(rows))


def _together(net: SequenceModel, documents: AskedDocuments) -> int:
    """How many residual streams are computed together."""
    budget = _BYTES_CPU if documents.inputs.device.type == "cpu" else _BYTES
    return max(8, budget // (4 * net.width * documents.inputs.shape[1]))


def _parts(site: str) -> tuple[int, str]:
    """The number of the layer of a site, and its name in it."""
    _, layer, part = site.split(".", 2)
    return int(layer), part
