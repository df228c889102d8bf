"""Tiny models with random weights, saved as the folders that transformers loads, and a server that answers as it is told."""

from __future__ import annotations

import base64
import email.policy
import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

WORDS = (
    "the speech is clean noisy muffled distorted very slightly good bad fair poor excellent quality overall with some background"
    " hiss and clear voice star please assess how it sounds rate this sample a b c"
).split()
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} <answer>{% endif %}"
)


def word_tokenizer(special: list[str], **names: str) -> Any:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate(dict.fromkeys([*special, *WORDS]))}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", **names)


def save_listener(folder: Path, seed: int = 0, chunk_s: int = 2, template: str | None = TEMPLATE) -> Path:
    """A Qwen2-Audio of a few thousand weights that hears ``chunk_s`` at once."""
    import torch
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor
    from transformers import WhisperFeatureExtractor as Extractor

    special = ["<pad>", "<unk>", "<eos>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<answer>"]
    tokenizer = word_tokenizer(special, eos_token="<eos>", additional_special_tokens=special[3:])
    extractor = Extractor(feature_size=16, sampling_rate=16000, chunk_length=chunk_s, n_fft=400, hop_length=160)
    audio = {"model_type": "qwen2_audio_encoder", "num_mel_bins": 16, "d_model": 16, "encoder_layers": 1}
    audio |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 32, "max_source_positions": chunk_s * 50}
    text = {"model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(seed)
    token = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=token)
    model = Qwen2AudioForConditionalGeneration(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0.0, 0.4)  # large weights: the answer depends on the audio
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    Qwen2AudioProcessor(extractor, tokenizer, chat_template=template).save_pretrained(folder)
    return folder


def save_sentiment(
    folder: Path, labels: list[str] | None = None, seed: int = 0, tokens: int = 32, bias: list[float] | None = None
) -> Path:
    """A BERT of a few thousand weights with the given labels; ``bias`` of its last layer makes its answers known."""
    import torch
    from tokenizers import processors
    from transformers import BertConfig, BertForSequenceClassification

    labels = labels or [f"{i} star{'s' if i > 1 else ''}" for i in range(1, 6)]
    special = ["<pad>", "<unk>", "<cls>", "<sep>"]
    tokenizer = word_tokenizer(special, cls_token="<cls>", sep_token="<sep>", model_max_length=tokens)
    around = processors.TemplateProcessing(single="<cls> $A <sep>", special_tokens=[("<cls>", 2), ("<sep>", 3)])
    tokenizer._tokenizer.post_processor = around
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=tokens, **small, **names)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0.0, 0.3)
        if bias is not None:
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor(bias))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Server:
    """An OpenAI-compatible server on the loopback; ``reply`` answers with (status, body, headers) to a parsed request."""

    def __init__(self, reply: Callable[[dict[str, Any]], Any]) -> None:
        self.reply, self.seen, self.url, self.busy, self.most = reply, [], "", 0, 0
        self.lock = threading.Lock()

    def heard(self, request: dict[str, Any]) -> np.ndarray:
        """The waveform in a request, decoded from the WAV bytes that were sent."""
        raw = request.get("file")
        if raw is None:
            (part,) = [p for p in request["messages"][0]["content"] if p["type"] != "text"]
            sound = part[part["type"]]
            kind, _, data = sound["url"].partition(",") if "url" in sound else (sound["format"], "", sound["data"])
            assert kind in ("data:audio/wav;base64", "wav")
            raw = base64.b64decode(data, validate=True)
        with sf.SoundFile(io.BytesIO(raw)) as file:
            assert (file.subtype, file.samplerate) == ("PCM_16", 16000)
            return file.read(dtype="float32")


def form_of(kind: str, body: bytes) -> dict[str, Any]:
    """A form's fields by name, in bytes, as the library of mail reads them."""
    read = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body, policy=email.policy.HTTP)
    return {p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in read.iter_parts()}


def said(text: Any, **message: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": text, **message}
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": answer}]}


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Any]):
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind = self.headers.get("Content-Type", "")
            request = form_of(kind, body) if kind.startswith("multipart/") else json.loads(body or b"{}")
            with server.lock:
                server.busy += 1
                server.most = max(server.most, server.busy)
                seen = {"path": self.path, "method": self.command, "key": self.headers.get("Authorization")}
                server.seen.append({**seen, "json": request, "time": time.monotonic()})
            try:
                made = server.reply(request)
            finally:  # before the answer leaves: whoever has it may ask again at once
                with server.lock:
                    server.busy -= 1
            status, body, headers = made if isinstance(made, tuple) else (200, made, {})
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        do_GET = do_POST  # without a body

        def log_message(self, *args: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    server.url = f"http://127.0.0.1:{web.server_port}/v1"
    thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        web.shutdown()
        web.server_close()
        thread.join(5)
