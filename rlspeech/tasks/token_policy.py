"""What every policy over tokens does, whatever its prompts are and whatever its tokens become: rollouts, phases, log-probabilities, KL.

``asr/policy.py`` (transcripts of recordings) and ``tts/policy.py`` (speech of texts) say how a prompt is made and what a row becomes.

With ``reference_in_group`` a prompt's reference stands behind its sampled rows and is rewarded as they are: a group in which all are wrong
has a winner. Nobody sampled it. Its old log-probabilities are the policy's own at the collection, by teacher forcing: its ratio is 1 at the
first update, and clipped as every other. So its gradient is A grad log pi(reference), a supervised step that is as large as the reference
is better than what the policy writes. Who wrote it has no density to take a ratio to. LUFFY (arXiv 2504.14945) sets it to 1: the ratio is
then the probability p, near 0 for what is never sampled, and shaped to p / (p + 0.1) against that. Here a rare token has all its gradient.
What the policy could not write (more tokens than its budget, suppressed ones) does not join: a winner that nobody can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from rlspeech import log
from rlspeech.config import PPO, RL
from rlspeech.config_parts import Sampling
from rlspeech.data.batches import Clip, bounded, seed_of
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.engine import sampled_rows
from rlspeech.files import read_object
from rlspeech.models.adapters import Adapted
from rlspeech.models.audio_lm.generate import Generation, like_lengths, right_padded, set_attention, widened
from rlspeech.models.audio_lm.model import match_precision
from rlspeech.models.audio_lm.vllm import VllmEngine, truncated_weights
from rlspeech.types import Fit, LogProb, Rollout, Sample, UserError, Utterance


def token_logp(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities (n, S) of tokens (n, S) under logits (n, S, V), in fp32; no second tensor of V numbers a token is kept at 1."""
    logits = logits if temperature == 1 else logits / temperature
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)


def token_kl(logits: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(policy || reference) (n, S) over the vocabulary, in nats, with gradient to the first (n, S, V); a token at -inf adds nothing."""
    here, there = ((x if temperature == 1 else x / temperature).log_softmax(-1) for x in (logits, reference))
    gap = (here - there).masked_fill(here.detach() == -torch.inf, 0.0)
    return (here.exp() * gap).sum(-1)


def sampled_kl(logp: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    """KL(policy || reference) estimated from the sampled tokens, all (n, S): k3 times the ratio to who sampled them.

    k3 = r - 1 - log r with r = reference / policy is never negative and has the KL for its mean, but not the KL's gradient for that of
    its mean: the sampling moves too. With the ratio, and its gradient, both are exact in expectation, as TRL's bias correction (1.16)
    and DeepSeek-V3.2 (arXiv 2512.02556).
    """
    gap, moved = (torch.where(x.isfinite(), x, torch.zeros_like(x)) for x in (reference - logp, logp - old))
    return moved.exp() * (gap.exp() - gap - 1)


def kept_mass(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probability (n, S) at the sampling temperature of the tokens that top-k and top-p leave; a drawn token's was divided by it."""
    ordered = (logits / sampling.temperature).softmax(-1).sort(-1, descending=True).values
    if sampling.top_k:
        ordered = ordered[..., : sampling.top_k]
    whole = ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    return torch.where(before < sampling.top_p * whole, ordered, torch.zeros_like(ordered)).sum(-1)


def spread(mask: Tensor, values: Tensor) -> Tensor:
    """Values (K,) in their places of a mask (n, S), and 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask.to(values.device), values)


Look = Callable[..., tuple[Tensor, ...]] | None
ROWS = 256  # most rows that are sampled at once
PART = 2**23  # logits that are made at once in training
SPARE = (256, 4096)  # padded tokens that a further pass has to spare, on the host and on a device
FEATURES = 256  # of a critic; wider hidden states are projected at random
# what a recogniser's and a synthesiser's ``rl`` starts from
TOKEN_SETTINGS = frozenset(
    "micro_tokens rollout_tokens gradient_checkpointing attn_implementation kl offload precision sharding "
    "reference_in_group sampling rollouts truncated truncated_reward normaliser by".split()
)
RL_DEFAULTS: dict[str, Any] = {
    **{"lora": None, "lr": 1e-4, "clip_s": 0.0, "clip_range": 0.2, "kl_beta": 0.04, "group": 8, "prompts_per_step": 16},
    "truncated": "keep",  # a loop is worth what a loop is worth
    "ppo": PPO(form="critic", gae_lambda=1.0, whiten=True),
}


def rows_of(data: str | None) -> list[Utterance]:
    """Rows of a manifest, or of a recipe's clean speech; of the embedded commands where ``data`` is None."""
    if data is None:
        from rlspeech.corpora.demo import demo_commands_clean

        data = str(demo_commands_clean("train"))
    found = find_manifest(data)
    if found.suffix != ".json":
        return read_manifest(found)
    return read_manifest(found.parent / str(read_object(found).get("clean")))


def texts_of(rows: Sequence[Utterance], normalise: Callable[[str], str], who: str) -> list[str]:
    """Normalised texts of rows, empty ones left out. Raises ``UserError``: there is none that ``who`` could learn from."""
    if texts := [text for text in (normalise(u.text or "") for u in rows) if text]:
        return texts
    raise UserError("no row of the data has a text", f"{who} learns from transcribed speech", "rlspeech prepare --help")


def check_texts(clips: Sequence[Clip], who: str) -> None:
    """Raise ``UserError`` where a clip has no text that ``who`` could learn from."""
    missing = [c.key for c in clips if c.text is None]
    if missing:
        why = f"{who} learns from transcribed speech"
        raise UserError(f"{missing[0]} has no text", why, "rlspeech check on the manifest")


@dataclass
class TokenRollout:
    """Prompts and sampled tokens of a collection."""

    clips: list[Clip]  # B prompts
    encoded: Any  # the prompts as the model takes them; None where an encoder is trained and encodes them again
    ids: Tensor  # (N, S) tokens, on the host
    mask: Tensor  # (N, S) bool, those that were drawn
    prompts: Tensor  # (N,) long
    # (N, S) log-probabilities by the engine that sampled, nan where it does not know; None: the policy itself sampled
    sampled: Tensor | None = None


class TokenPolicy:
    """Acts with the current weights of ``adapted``; see ``types.Policy``.

    Args:
        task: the one that made it.
        adapted: a language model (``AudioLM``, ``CodecLM``), what of it is trained, its reference.
        config: sampling, KL, phases; the micro-batches of its updates.
    """

    supports: frozenset[str] = frozenset()
    # what a subclass adds
    _encode: Callable[..., Any]  # prompts of clips, as the model takes them
    _room: Callable[[Sequence[Clip]], list[int]]  # the most tokens of each one's answer
    _samples: Callable[[list[Clip], Tensor, Tensor, Tensor], list[Sample]]  # of rows: their clips, ids, mask, finished
    _answers: Callable[[Any, list[Clip]], list[Sample]]  # what a model makes of clips, the same every time
    _is_empty: Callable[[Clip], bool]  # whether nothing is asked
    _has_reference: Callable[[Clip], bool]  # whether it can be learned from
    _references: Callable[[Sequence[Clip]], tuple[Tensor, Tensor]]  # ids and mask (n, S) of clips' references

    def __init__(self, task: Any, adapted: Adapted, config: RL) -> None:
        self.task, self.adapted, self.config = task, adapted, config
        self.model: Any = adapted.model
        self.sampling, self.seed, self.sample_rate = config.sampling, config.seed, self.model.sample_rate
        self.device = self.model.device
        self.announce = self.enter  # an algorithm that times the phases puts its own in place
        self.notes: dict[str, float] = {}  # of the last collection, for the log
        self._phase, self._warned = "", set[str]()
        self._half = any(p.dtype == torch.bfloat16 for p in self.parameters())
        for p in self.parameters():
            p.data = p.data.float()
        self.model.recomputes = config.gradient_checkpointing
        if self._half and adapted.frozen is not None:
            match_precision(self.model, adapted.frozen)
        for model in filter(None, (self.model, adapted.frozen)) if config.attn_implementation != "auto" else ():
            set_attention(model.net, config.attn_implementation)
        self.sampler, several = self.model, torch.distributed.is_initialized()
        if config.rollouts.engine == "vllm":
            self.sampler = VllmEngine(self.model, self._half, config.rollouts)
        if config.sharding == "fsdp" and several:  # one process has nobody to share with
            adapted.shard(self._half)

    def parameters(self) -> list[Parameter]:
        return self.adapted.parameters()

    # -- phases --------------------------------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """Keep, with ``offload`` "phase", on the device what "encode", "rollout", "reward" or "update" needs, and nothing else."""
        if self.config.offload != "phase" or phase == self._phase:
            return
        self._phase = phase
        if (other := self.adapted.frozen) is not None:  # first: what both share goes where the policy needs it
            other.park("update" if phase == "update" and self.config.kl_beta else "reward", self.device)
        encodes = phase == "update" and self.config.supervised_weight > 0
        self.model.park("all" if encodes else phase, self.device)  # type: ignore[arg-type]  # one of the four

    def _cast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._half else nullcontext()

    # -- acting --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, batch: list[Clip], *, group: int, seed: int) -> Rollout:
        """Sample ``group`` answers to each of B clips. Returns N rows of S tokens, the stop one of them, references behind their groups."""
        self.announce("encode")
        with self._cast():
            encoded = self._encode(batch)
            parked = encoded.to("cpu") if self.config.offload == "phase" else encoded
            self.announce("rollout")
            ids, mask, finished, prompts, given, sampled = self._generate(encoded, batch, group, seed)
        nothing = torch.tensor([self._is_empty(c) for c in batch])[prompts]  # was decided in their rows
        mask, finished = mask & ~nothing[:, None], finished | nothing
        samples = self._samples([batch[p] for p in prompts.tolist()], ids, mask, finished)
        for sample, is_reference in zip(samples, given.tolist(), strict=True):
            sample.reference = is_reference
        kept = None if getattr(self.model, "train_encoder", False) else parked
        return self._pack(TokenRollout(batch, kept, ids, mask, prompts, sampled), samples, finished)

    @torch.no_grad()
    def base(self, batch: list[Clip], *, seed: int | None = None) -> list[Sample]:
        """What the reference weights make of each clip; the seed changes nothing."""
        with self.adapted.reference() as model:
            if self.config.offload == "phase":
                self._phase = ""  # the reference needs its parts too
                model.park("all", self.device)
            with self._cast():
                return self._answers(model, batch)

    def _generate(self, encoded: Any, batch: Sequence[Clip], group: int, seed: int) -> tuple[Any, ...]:
        """Ids and mask (N, S), finished, prompts and given (N,): ``group`` rows a clip, and its reference where that joins them.

        The last is what an engine says of its tokens (N, S), or None.
        """
        own, most = self.sampler is self.model, self._room(batch)
        budget = self.config.rollout_tokens if own else None
        least = self.config.rollout_tokens // ROWS
        lengths = torch.tensor([group * max(len(i) + n, least) for i, n in zip(encoded.ids, most, strict=True)])
        # several parts are of like length, so that the rows of each stop at about one time
        order = lengths.argsort(stable=True) if len(bounded(lengths.tolist(), budget)) > 1 else torch.arange(len(batch))
        parts, prompts = [], order.repeat_interleave(group)
        for part in order.split(bounded(lengths[order].tolist(), budget)):
            chosen = part.tolist()
            room, seeds = [most[i] for i in chosen], [seed_of(self.seed, seed, batch[i].draw) for i in chosen]
            how: dict[str, Any] = {"group": group, "sampling": self.sampling, "max_new_tokens": room, "seed": seeds}
            parts.append(self.sampler.generate(encoded.select(part), **how))
        if self.config.reference_in_group and any(map(self._has_reference, batch)):
            joining, references = self._joining(batch, self.model.room(encoded, most))
            prompts, parts = torch.cat([prompts, joining]), [*parts, references]
        order, (ids, mask) = prompts.sort(stable=True).indices, self._stacked([d[:2] for d in parts])
        finished, sampled = torch.cat([d.finished for d in parts]), None
        if not own:
            logp = [torch.full(d.ids.shape, torch.nan) if d.logp is None else d.logp for d in parts]
            sampled = widened(logp, torch.nan)[order]
        return ids[order], mask[order], finished[order], prompts[order], order >= len(batch) * group, sampled

    def _joining(self, batch: Sequence[Clip], room: Sequence[int]) -> tuple[Tensor, Generation]:
        """Clips (K,) whose reference the policy could write, and those references."""
        known, model = torch.tensor([i for i, c in enumerate(batch) if self._has_reference(c)]), self.model
        ids, mask = self._references([batch[i] for i in known.tolist()])
        never, first = (torch.tensor(x).long() for x in (model.suppress_tokens, model.begin_suppress_tokens))
        shut = (torch.isin(ids, never) & mask).any(1) | torch.isin(ids[:, 0], first)
        fits = ~shut & (mask.sum(1) <= torch.tensor(room)[known])
        if not fits.all():
            why = f"{int((~fits).sum())} of {len(known)} references are longer than may be written, or hold suppressed tokens"
            hint = "--set sampling.max_new_tokens=N, or suppress=allow_empty where texts are empty"
            self._once("joining", f"{why}: they do not join their groups; {hint}")
        return known[fits], Generation(ids[fits], mask[fits], fits[fits])

    def _stacked(self, rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Parts' ids and masks (n, S) as one, as wide as the widest."""
        return widened([ids for ids, _ in rows], self.model.pad), widened([mask for _, mask in rows], 0)

    @torch.no_grad()
    def join(self, parts: Sequence[tuple[Rollout, Tensor]]) -> Rollout:
        """Some prompts (K,) of several rollouts as one; see ``GRPO.refill``. Its micro-batches are new, and ``logp`` with them."""
        self.announce("rollout")
        clips, samples, owners, encoded = list[Clip](), list[Sample](), list[int](), list[Any]()
        ids_mask, finished, sampled = list[tuple[Tensor, Tensor]](), list[Tensor](), list[Tensor]()
        for rollout, chosen in parts:
            state: TokenRollout = rollout.state
            if state.encoded is not None:
                encoded.append(state.encoded.select(chosen))
            for p in chosen.tolist():
                rows = (state.prompts == p).nonzero()[:, 0]
                owners += [len(clips)] * len(rows)
                clips.append(state.clips[p])
                ids_mask.append((state.ids[rows], state.mask[rows]))
                sampled += [] if state.sampled is None else [state.sampled[rows]]
                finished.append(rollout.finished[rows])
                samples += [rollout.samples[i] for i in rows.tolist()]
        whole = type(encoded[0]).joined(encoded) if encoded else None
        by_engine = widened(sampled, torch.nan) if sampled else None
        made = TokenRollout(clips, whole, *self._stacked(ids_mask), torch.tensor(owners), by_engine)
        return self._pack(made, samples, torch.cat(finished))

    def _once(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            log.warn(message)

    # -- the training path -------------------------------------------------------------------------------------------------

    def _pack(self, state: TokenRollout, samples: list[Sample], finished: Tensor) -> Rollout:
        """A rollout with the log-probabilities of the training pass, over the micro-batches that the update will take."""
        logp = torch.zeros(state.ids.shape, device=self.device)
        gaps, warm = list[Tensor](), list[Tensor]()
        sampled = state.mask & sampled_rows(samples)[:, None]
        cut, warmth = self.sampling.top_p < 1 or self.sampling.top_k > 0, self.sampling.temperature

        def look(logits: Tensor, ids: Tensor, drawn: Tensor) -> tuple[Tensor, ...]:
            trained = token_logp(logits, ids, warmth)
            gap = -kept_mass(logits, self.sampling).log() if cut else trained
            return trained, gap[drawn], (trained if warmth == 1 else trained - token_logp(logits, ids))[drawn].abs()

        for rows in self._micro(state):
            here = state.mask[rows]
            states, drawn = self._forward(self.model, state, rows), sampled[rows][here].to(self.device)
            trained, gap, away = self._at_tokens(look, states, state.ids[rows], here, drawn)
            logp[rows.to(self.device)] = spread(here, trained)
            gaps += [gap] * cut
            warm += [away] * (warmth != 1)
        self._compare(gaps, warm)
        mask, weight = state.mask.to(self.device) & logp.isfinite(), None
        logp = torch.where(mask, logp, torch.zeros_like(logp))
        if state.sampled is not None:
            weight, noted = truncated_weights(
                logp, state.sampled.to(logp.device), mask, self.config.rollouts.weight_cap
            )
            self.notes |= noted | {"seconds/sync": getattr(self.sampler, "sync_s", 0.0)}
        return Rollout(state.prompts, logp, mask, samples, state, finished, weight)

    def _micro(self, state: TokenRollout) -> Iterator[Tensor]:
        """Rows (n,) of every micro-batch of the updates on this collection (``algos.update``)."""
        for share in torch.arange(len(state.clips)).tensor_split(self.config.updates_per_collection):
            for part in share.split(self.config.micro_batch):
                if len(part):
                    rows = torch.isin(state.prompts, part).nonzero()[:, 0]
                    yield from rows.split(bounded(state.mask[rows].sum(1).tolist(), self.config.micro_tokens))

    def _compare(self, gaps: list[Tensor], warm: list[Tensor]) -> None:
        """Say once how far what samples is from what is trained, and note it for every collection."""
        cfg, self.notes = self.sampling, {}
        if gaps:
            gap = self.notes["sampler_gap"] = float(torch.cat(gaps).mean())
            how, hint = f"top_p {cfg.top_p:g}, top_k {cfg.top_k}", "--set sampling.top_p=1 --set sampling.top_k=0"
            off = f"mean |log ratio| between what is sampled and what is trained is {gap:.3f} a token"
            self._once("truncated", f"rollouts are drawn with {how}: {off}; {hint} makes them one")
        if warm:
            gap = self.notes["temperature_gap"] = float(torch.cat(warm).mean())
            what = f"what is sampled and trained is the policy at temperature {cfg.temperature:g}"
            self._once("warm", f"{what}: mean |log ratio| to the one at temperature 1 is {gap:.3f} a token")

    def _forward(self, model: Any, state: TokenRollout, rows: Tensor) -> Tensor:
        """What the head sees before each of the rows' tokens, (n, S', D), S' the longest of them."""
        lengths = state.mask[rows].sum(1)
        whole = state.encoded is None or self.adapted.sharded  # whose processes make as many passes
        parts = [torch.arange(len(rows))] if whole else like_lengths(lengths, SPARE[self.device.type != "cpu"])
        if len(parts) == 1:
            return self._forward_rows(model, state, rows)
        made = [self._forward_rows(model, state, rows[part]) for part in parts]
        width = max(x.shape[1] for x in made)
        out = made[0].new_zeros(len(rows), width, made[0].shape[2])
        for part, x in zip(parts, made, strict=True):
            out.index_copy_(0, part.to(x.device), pad(x, (0, 0, 0, width - x.shape[1])))
        return out

    def _forward_rows(self, model: Any, state: TokenRollout, rows: Tensor) -> Tensor:
        """``_forward`` at rows together, as wide as the longest."""
        prompts, encoded = state.prompts[rows], state.encoded
        ids = state.ids[rows, : max(1, int(state.mask[rows].sum(1).max()))]
        with self._cast():
            if encoded is None:
                used, prompts = torch.unique(prompts, return_inverse=True)
                clips = [state.clips[i] for i in used.tolist()]
                encoded = self._encode(clips, model=model, grad=torch.is_grad_enabled())
            return model.forward_states(encoded, prompts, ids)  # type: ignore[no-any-return]

    def _logits(self, model: Any, states: Tensor, first: Tensor | None = None, head: Any = None) -> Tensor:
        """Logits (..., V) float32 of what the head sees, in rows (n, S, D), or (k, D) where it is said which are a row's ``first`` (k,)."""
        first = torch.arange(states.shape[1], device=states.device) == 0 if first is None else first
        with self._cast():
            return model.restrict((head or model.head)(states).float(), first)  # type: ignore[no-any-return]

    def _at_tokens(
        self, look: Look, states: Tensor, ids: Tensor, mask: Tensor, *more: Tensor, model: Any = None, other: Any = None
    ) -> tuple[Tensor, ...]:
        """What ``look`` makes of the K tokens that count, from a part of their logits at a time; the backward pass makes them anew.

        Args:
            look: (logits (k, V) float32, ids (k,), and what ``more`` holds of them) -> tensors (k, ...); none: ``token_logp``.
            states: (n, S', D) what the head sees.
            ids, mask: (n, S); tokens, and those that count.
            more: (K, ...) of theirs; with ``other`` the last is what that model's head sees, of which ``look`` gets the logits.
            model: whose head it is; none: the policy's.
        """
        model, mask = model or self.model, mask[:, : states.shape[1]].to(states.device)
        first, head, theirs = torch.zeros_like(mask), model.open_head(), other and other.open_head()
        first[:, :1] = True

        def part(states: Tensor, first: Tensor, ids: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
            if other is not None:
                with torch.no_grad():
                    more = *more[:-1], self._logits(other, more[-1], first, theirs)
            logits = self._logits(model, states, first, head)
            return look(logits, ids, *more) if look else (token_logp(logits, ids),)

        anew = partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False)
        columns = states[mask], first[mask], ids.to(mask.device)[:, : mask.shape[1]][mask], *more
        size = max(1, PART // model.net.get_output_embeddings().weight.shape[0])
        rows = zip(*(c.split(size) for c in columns), strict=True)
        made = [(anew if torch.is_grad_enabled() else part)(*row) for row in rows]
        return tuple(torch.cat(x) for x in zip(*made, strict=True))

    def _logp_kl(self, rollout: Rollout, rows: Tensor, states: Tensor, with_kl: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (n, S) of the rows' tokens from what the head sees, and KLs (n, S), both 0 where nothing was drawn."""
        state, k3, warmth = rollout.state, self.config.kl == "k3", self.sampling.temperature
        ids, mask, other, there = state.ids[rows], state.mask[rows], None, list[Tensor]()
        if with_kl:
            with torch.no_grad(), self.adapted.reference() as other:
                there = [self._forward(other, state, rows)[mask[:, : states.shape[1]].to(states.device)]]

        def look(logits: Tensor, ids: Tensor, *reference: Tensor) -> tuple[Tensor, ...]:
            logp = token_logp(logits, ids, warmth)
            if not reference:
                return (logp,)
            return logp, token_logp(reference[0], ids, warmth) if k3 else token_kl(logits, reference[0], warmth)

        logp, *kl = self._at_tokens(look, states, ids, mask, *there, other=other)
        if kl and k3:
            kl = [sampled_kl(logp, kl[0], rollout.logp[rows.to(rollout.logp.device)][mask.to(rollout.logp.device)])]
        return spread(mask, logp), spread(mask, kl[0]) if kl else None

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        logp, kl = self._logp_kl(rollout, rows, self._forward(self.model, rollout.state, rows), with_kl)
        one = torch.ones(logp.shape[1], device=logp.device)
        return LogProb(logp, kl, torch.zeros_like(logp).detach(), one, one)

    def idle(self, *, with_kl: bool = False) -> Tensor:
        with self._cast():
            return self.adapted.idle(with_kl)

    def recall(self, prompts: Sequence[Clip], samples: Sequence[Sample]) -> TokenRollout:
        """The tokens of given outputs: ``tokens``, or those of ``hypothesis`` as the model writes it; with the stop if ``finished``."""
        places = {id(c): c for c in prompts}
        clips, order = list(places.values()), {key: i for i, key in enumerate(places)}
        rows = []
        for clip, sample in zip(prompts, samples, strict=True):
            stop = torch.tensor(self.model.stops[:1])
            if sample.tokens is not None:
                ids = torch.cat([torch.as_tensor(sample.tokens).long().reshape(-1), stop])
            elif sample.hypothesis is not None:
                ids = self.model.references([sample.hypothesis], self.sampling.language)[0][0]
            else:
                raise UserError(f"{sample.key} has neither tokens nor a hypothesis", "", "rlspeech sample makes both")
            rows.append(ids[: 0 if self._is_empty(clip) else len(ids) - (not sample.finished)])
        encoded = None
        if not getattr(self.model, "train_encoder", False):
            if self.config.offload == "phase":
                self._phase = ""  # what encodes is needed too
                self.model.park("all", self.device)
            with torch.no_grad(), self._cast():
                encoded = self._encode(clips)
        ids, mask = right_padded(rows, self.model.pad)
        return TokenRollout(clips, encoded, ids, mask, torch.tensor([order[id(c)] for c in prompts]))

    def fit(self, prompts: list[Clip], samples: list[Sample], *, seed: int, reference: bool = True) -> Fit:
        """Log-likelihood at temperature 1; suppressed tokens cannot be learnt and are left out. See ``types.FittingPolicy``."""
        state, every, there, kl = self.recall(prompts, samples), torch.arange(len(samples)), None, None

        def logp_of(model: Any) -> Tensor:
            states = self._forward(model, state, every)
            return spread(state.mask, self._at_tokens(None, states, state.ids, state.mask, model=model)[0])

        here = logp_of(self.model)
        mask = state.mask.to(here.device) & here.isfinite()
        here = here.masked_fill(~mask, 0.0)
        if reference:
            with torch.no_grad(), self.adapted.reference() as other:
                away = logp_of(other).masked_fill(~mask, 0.0)
            there, kl = away.sum(1), sampled_kl(here, away, here.detach()).sum(1)
        return Fit(here.sum(1), there, kl, mask.sum(1).float())

    def references(self, prompts: list[Clip]) -> list[Sample]:
        if lacking := [c.key for c in prompts if not self._has_reference(c)]:
            raise LookupError(f"{lacking[0]} has no reference")
        ids, mask = self._references(prompts)
        rows = zip(prompts, ids, mask, strict=True)
        return [replace(c.sample(c.target, self.sample_rate), tokens=i[m][:-1].numpy()) for c, i, m in rows]

    @torch.no_grad()
    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """What the head sees before each token: (n, S, D) float32, D at most ``FEATURES`` by a fixed random projection."""
        state: TokenRollout = rollout.state
        states = self._forward(self.model, state, rows).float()
        wide = states.shape[-1]
        if wide > FEATURES:
            projection = torch.randn(wide, FEATURES, generator=torch.Generator().manual_seed(0)) / wide**0.5
            states = states @ projection.to(states.device)
        return pad(states, (0, 0, 0, state.ids.shape[1] - states.shape[1]))

    def supervised(self, prompts: list[Clip], *, rollout: Rollout | None = None, rows: Tensor | None = None) -> Tensor:
        """Cross-entropy of the references in nats a token, its mean over the clips; one without a reference counts as 0.

        Tokens that are suppressed, a stop at the start among them, cannot be learnt and are left out.
        """
        known = [c for c in prompts if self._has_reference(c)]
        if not known:
            return self.idle()
        ids, mask = self._references(known)
        with self._cast():
            encoded = self._encode(known, grad=getattr(self.model, "train_encoder", False))
            states = self.model.forward_states(encoded, torch.arange(len(known)), ids)
        logp = spread(mask, self._at_tokens(None, states, ids, mask)[0])
        mask = mask.to(logp.device)
        if lost := int((shut := mask & logp.isinf()).any(1).sum()):
            why = f"{lost} of {len(known)} references hold tokens that the model's generation config suppresses"
            self._once("shut", f"{why}: they are left out of the loss; --set suppress=allow_empty or none keeps them")
        mask = mask & ~shut
        each = -torch.where(mask, logp, torch.zeros_like(logp)).sum(1) / mask.sum(1).clamp_min(1)
        return each.sum() / len(prompts)
