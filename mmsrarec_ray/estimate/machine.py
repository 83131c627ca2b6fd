"""What engines and fine-tunings take of GPUs: memory a GPU in bytes, time in seconds. Equations: docs/plan.md."""

from __future__ import annotations

from dataclasses import dataclass

from mmsrarec_ray.adapters import ZERO_STAGES
from mmsrarec_ray.config import Config
from mmsrarec_ray.estimate.gpus import GPUS, Gpu
from mmsrarec_ray.estimate.shapes import Shapes
from mmsrarec_ray.settings import Plan, Tuning

GIB = 2**30
VLLM_SHARE = 0.92
"""Of a GPU's memory: the default of vLLM's `gpu_memory_utilization`, which no setting of ours changes."""
# Parts of the memory, as estimates name them.
WEIGHTS, CACHE = "weights", "KV cache of one longest sequence"
BASE, STATES, GATHERED = "base", "adapter, gradients, optimizer", "gathered weights"
ACTIVATIONS = "activations"
_LIVE_PARAMETERS = 1e9  # the default of DeepSpeed's stage3_max_live_parameters
_ADAPTER_BYTES = 16  # a parameter: 2 itself, 2 its gradient, 12 a copy in 32 bit and AdamW's two moments


@dataclass(frozen=True)
class Engines:
    """Engines of vLLM that share nothing: `count` of them, each on `parallel` GPUs (tensor parallelism)."""

    shapes: Shapes
    plan: Plan
    count: int
    parallel: int
    sequences: int
    """In an engine at a time, at most."""
    share: float = VLLM_SHARE
    """Of each GPU's memory."""

    @classmethod
    def of(cls, config: Config, shapes: Shapes) -> Engines:
        """Those of Ray Data."""
        e = config.engine
        return cls(shapes, config.plan, e.concurrency, e.tensor_parallel_size, e.max_num_seqs)

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.plan.gpu]

    @property
    def gpus(self) -> int:
        return self.count * self.parallel

    @property
    def limit(self) -> float:
        """Bytes of a GPU that an engine may take."""
        return self.share * self.gpu.memory

    def memory(self, max_model_len: int) -> dict[str, float]:
        """What an engine needs to start: vLLM refuses where one sequence of the greatest length finds no room."""
        return {
            WEIGHTS: self.shapes.weights / self.parallel,
            "vLLM's overhead": self.plan.engine_overhead_gib * GIB,
            CACHE: max_model_len * self.shapes.kv_bytes(self.parallel),
        }

    def needed(self, max_model_len: int) -> float:
        """All of it."""
        return sum(self.memory(max_model_len).values())

    def smaller(self) -> dict[str, str]:
        """What makes parts of it smaller."""
        parallel = "raise engine.tensor_parallel_size and engine.gpus"
        return {WEIGHTS: parallel, CACHE: f"lower model.max_model_len, or {parallel}"}

    @property
    def kv_tokens(self) -> float:
        """Tokens that the KV cache of an engine holds; below 0 where not even the weights fit."""
        room = self.limit - self.shapes.weights / self.parallel - self.plan.engine_overhead_gib * GIB
        return room / self.shapes.kv_bytes(self.parallel)

    def prefill_seconds(self, flops: float, tokens: float) -> float:
        """Of prompts with so much arithmetic and so many tokens in all: bound by arithmetic. Under tensor parallelism
        two sums over the GPUs a layer come on top, of each token's hidden state (Shoeybi et al. 2019,
        arXiv:1909.08053)."""
        share = self.plan.utilisation
        sums = tokens * 2 * self.shapes.layers * self.shapes.hidden * self.shapes.width
        sent = sums * 2 * (self.parallel - 1) / self.parallel / self.count
        return flops / (self.gpus * self.gpu.flops * share.prefill) + sent / (self.gpu.link * share.links)

    def decode_seconds(self, answers: float, prompt: float, tokens: float) -> float:
        """Of so many answers of `tokens` tokens after `prompt` tokens. Each step reads all weights once and the keys
        and values of all sequences, or is bound by arithmetic where there are many (a roofline)."""
        context = prompt + tokens / 2
        batch = max(1.0, min(self.sequences, answers / self.count, self.kv_tokens / (prompt + tokens)))
        read = self.shapes.read_by_decode / self.parallel + batch * context * self.shapes.kv_bytes(self.parallel)
        flops = batch * (self.shapes.text_flops(1, context) + self.shapes.head_flops(1)) / self.parallel
        share = self.plan.utilisation
        step = max(read / (self.gpu.bandwidth * share.decode), flops / (self.gpu.flops * share.prefill))
        return answers / self.count / batch * tokens * step


@dataclass(frozen=True)
class Trainers:
    """Workers that fine-tune an adapter, a GPU each."""

    shapes: Shapes
    plan: Plan
    tuning: Tuning
    count: int

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.plan.gpu]

    @property
    def zero(self) -> int:
        """Stage of ZeRO, 0 without."""
        return ZERO_STAGES[self.tuning.deepspeed] if self.tuning.deepspeed else 0

    @property
    def micro_batch(self) -> int:
        return min(self.tuning.batch_size // self.count, self.tuning.micro_batch_size)

    @property
    def limit(self) -> float:
        return self.gpu.memory - self.plan.reserve_gib * GIB

    def loading(self, models: int) -> str:
        """What a node must hold while workers start. models: those that each reads whole before its GPU has them."""
        most = min(self.count, self.plan.gpus_per_node)
        return f"host memory of a node at the start: {most * models * self.shapes.weights / GIB:,.0f} GiB"

    def states(self) -> dict[str, float]:
        """The frozen base and the adapter with its gradients and optimizer, as ZeRO divides them (Rajbhandari et al.
        2020, arXiv:1910.02054, section 3; stage 3 divides the frozen base too)."""
        n, adapter = self.count, self.shapes.lora_parameters(self.tuning.lora)
        whole = {0: 16, 1: 4, 2: 2, 3: 0}[self.zero]
        return {
            BASE: self.shapes.weights / (n if self.zero == 3 else 1),
            STATES: adapter * (whole + (_ADAPTER_BYTES - whole) / n),
        }

    def smaller(self, stage: str) -> dict[str, str]:
        """What makes parts of the memory smaller, of those that every fine-tuning has. stage: whose settings say so."""
        zero3 = "" if self.zero == 3 else f"{stage}.deepspeed=zero3 and "
        ways = [f"lower {stage}.micro_batch_size below {self.micro_batch}"] if self.micro_batch > 1 else []
        if not self.tuning.gradient_checkpointing:
            ways.append(f"set {stage}.gradient_checkpointing=true")
        said = {BASE: f"take {zero3}more workers (train.workers)", STATES: f"lower {stage}.lora.rank"}
        return said | ({ACTIVATIONS: ", or ".join(ways)} if ways else {})

    def gathered(self) -> float:
        """Weights that ZeRO-3 has brought together on a GPU at a time."""
        live = min(self.shapes.parameters, _LIVE_PARAMETERS)
        return self.shapes.width * live if self.zero == 3 else 0

    def activations(self, tokens: float, patches: float) -> float:
        """What the backward pass of a micro batch needs, of examples of so many tokens and patches. With checkpointing
        the input of each block, and one block worked out again; that makes the tower pass gradients on too, 34 bytes a
        hidden value of its block (Korthikanti et al. 2022, arXiv:2205.05198, equation 2 without attention's scores)."""
        s, layer = self.shapes, self.shapes.layer_bytes(self.tuning.lora)
        if not self.tuning.gradient_checkpointing:
            return self.micro_batch * tokens * s.layers * layer
        text = tokens * (s.layers * s.hidden * s.width + layer)
        tower = patches * s.tower_hidden * (s.tower_layers * s.width + 34)
        return self.micro_batch * (text + tower)

    def flops(self, tokens: float, patches: float, answer: float) -> float:
        """Of training on one example. A pass back goes through the frozen weights and works out no gradient for them,
        so it costs as much as the pass forward; checkpointing adds one more, and takes the tower along."""
        s, again = self.shapes, self.tuning.gradient_checkpointing
        adapter = 6 * s.lora_parameters(self.tuning.lora) * tokens
        text = s.text_flops(tokens) + s.head_flops(answer)
        return (3 if again else 2) * text + (3 if again else 1) * s.picture_flops(patches) + adapter

    def seconds(self, flops: float) -> float:
        """Of arithmetic that all workers divide."""
        return flops / (self.count * self.gpu.flops * self.plan.utilisation.training)

    def gather_seconds(self, times: float = 1) -> float:
        """Of bringing all weights to every GPU, so many times."""
        link = self.gpu.link if self.count <= self.plan.gpus_per_node else self.plan.network_gb_s * 1e9
        received = self.shapes.weights * (self.count - 1) / self.count
        return times * received / (link * self.plan.utilisation.links)

    def passes_gathered(self, trained: float, forward: float) -> float:
        """Seconds that ZeRO-3 adds: weights are gathered for each micro batch, once forward, once back, and once more
        where checkpointing works blocks out again. trained, forward: micro batches of a worker with and without a pass
        back. Our settings let nothing overlap with it (`overlap_comm`)."""
        if self.zero != 3:
            return 0.0
        return self.gather_seconds((3 if self.tuning.gradient_checkpointing else 2) * trained + forward)
