"""Makes the tiny models that the proofs serve. Nothing is downloaded.

usage: make_models.py FOLDER

FOLDER/generate    a Llama of 2 layers with a ChatML template
FOLDER/embed       a BERT without a head, mean pooling
FOLDER/classify    the same with 3 labels
FOLDER/multimodal  a LLaVA: a CLIP tower of 3 layers before the same Llama
FOLDER/speech      a Whisper that hears 2 seconds at a time

The weights are random and seeded: the answers are gibberish, but the same
gibberish on every machine, with real token counts, streams and caches.
"""

import json
import os
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

CHAT_SPECIALS = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]

# ChatML. Text parts of a list are joined; a picture becomes the <image> token. As
# in many real templates a variable, preamble, puts text where the system's stands.
CHATML = (
    "{%- if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- if preamble %}<|im_start|>system\n{{ preamble }}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.content is string %}{{ m.content }}"
    "{%- elif m.content %}{% for p in m.content %}"
    "{%- if p.type in ('image', 'image_url') %}<image>{% else %}{{ p.text }}{% endif %}"
    "{%- endfor %}{% endif %}"
    "{%- if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# What vLLM's prompt for a Whisper is made of, and the languages among which it
# lets the model choose.
SPEECH_SPECIALS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in LANGUAGES),
    *(f"<|{task}|>" for task in ("translate", "transcribe", "startoflm", "prev", "startofprev", "nospeech", "notimestamps")),
]

WORDS = [
    "the quick brown fox jumps over the lazy dog",
    "user assistant system hello world what is the capital of France",
    "a gate lets through what was granted and nothing else",
]


def byte_level(specials):
    """A byte-level BPE tokenizer: every text has tokens, none is unknown."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(WORDS * 20, trainer)
    return tok


def chat_tokenizer(extra=()):
    tok = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(CHAT_SPECIALS + list(extra)),
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        model_max_length=1024,
    )
    tok.chat_template = CHATML
    if extra:
        tok.add_special_tokens({"additional_special_tokens": list(extra)})
    return tok


def llama(tok, vocab=384):
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        pad_token_id=tok.pad_token_id,
        bos_token_id=tok.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tok.eos_token_id,
        tie_word_embeddings=False,
    )


def speak_plainly(head, tok):
    """Makes the random answers sharp and readable.

    Larger logits leave no near-ties, so that the greedy answer does not depend
    on which kernel ran (a prompt from the cache takes another than one that is
    not). Tokens that are special, or not printable ASCII, get no weight: every
    token shows as text, every stream has as many events as tokens, and a greedy
    answer never ends by itself before max_tokens.
    """
    with torch.no_grad():
        head.weight.mul_(30)
        special = set(tok.all_special_ids)
        for i in range(head.weight.shape[0]):
            text = tok.decode([i]) if i < len(tok) else ""
            if i in special or not text.isascii() or not text.isprintable() or not text:
                head.weight[i] = 0


def make_generate(out):
    tok = chat_tokenizer()
    torch.manual_seed(1)
    model = LlamaForCausalLM(llama(tok)).to(torch.bfloat16)
    speak_plainly(model.lm_head, tok)
    model.save_pretrained(out)
    tok.save_pretrained(out)


def make_pooling(out, cls, **extra):
    raw = byte_level(["[PAD]", "[CLS]", "[SEP]"])
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", raw.token_to_id("[CLS]")), ("[SEP]", raw.token_to_id("[SEP]"))],
    )
    tok = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=512
    )
    config = BertConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=tok.pad_token_id,
        **extra,
    )
    torch.manual_seed(2)
    cls(config).save_pretrained(out)
    tok.save_pretrained(out)


def make_multimodal(out):
    tok = chat_tokenizer(["<image>"])
    image_id = tok.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=32,
        ),
        text_config=llama(tok),
        image_token_index=image_id,
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(3)
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    speak_plainly(model.lm_head, tok)
    model.save_pretrained(out)
    pixels = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    )
    LlavaProcessor(
        image_processor=pixels,
        tokenizer=tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML,
    ).save_pretrained(out)
    rename_tower(out)


def rename_tower(out):
    """vLLM looks for vision_tower.vision_model.*; transformers saves without."""
    from safetensors.torch import load_file, save_file

    path = os.path.join(out, "model.safetensors")
    old = load_file(path)
    new = {}
    for key, value in old.items():
        head, sep, rest = key.partition("vision_tower.")
        if sep and not rest.startswith("vision_model."):
            key = head + sep + "vision_model." + rest
        new[key] = value
    save_file(new, path, metadata={"format": "pt"})


def speech_tokenizer():
    """The same byte-level BPE in Whisper's own class. The time stamps come last:
    vLLM takes every token from the first of them on for one."""
    bpe = json.loads(byte_level([]).to_str())["model"]
    tok = WhisperTokenizer(vocab=bpe["vocab"], merges=[tuple(pair) for pair in bpe["merges"]])
    tok.add_special_tokens({"additional_special_tokens": SPEECH_SPECIALS})
    tok.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(101)])
    return tok


def make_speech(out):
    tok = speech_tokenizer()
    end = tok.convert_tokens_to_ids("<|endoftext|>")
    config = WhisperConfig(
        vocab_size=640,
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=100,
        max_target_positions=64,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=tok.convert_tokens_to_ids("<|startoftranscript|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(4)
    model = WhisperForConditionalGeneration(config)
    listen(model, tok, end)
    model.to(torch.bfloat16).save_pretrained(out)
    # 100 source positions are 200 frames of 10 ms.
    WhisperProcessor(feature_extractor=WhisperFeatureExtractor(chunk_length=2), tokenizer=tok).save_pretrained(out)


def listen(model, tok, specials):
    """Makes the answer depend on the sound.

    The head is the embedding here (vLLM ties them), so speak_plainly would make
    the model repeat its last token: the last norm is made larger instead, and
    positions and sound outweigh the token.
    """
    decoder, encoder = model.model.decoder, model.model.encoder
    with torch.no_grad():
        decoder.embed_positions.weight.mul_(60)
        decoder.layer_norm.weight.mul_(60)
        encoder.conv1.weight.mul_(4)
        encoder.conv2.weight.mul_(4)
        for layer in decoder.layers:
            layer.encoder_attn.v_proj.weight.mul_(8)
            layer.encoder_attn.out_proj.weight.mul_(4)
        for i in range(model.proj_out.weight.shape[0]):
            text = tok.decode([i]) if i < specials else ""
            if not text or not text.isascii() or not text.isprintable():
                model.proj_out.weight[i] = 0


def main(folder):
    make_generate(os.path.join(folder, "generate"))
    make_pooling(os.path.join(folder, "embed"), BertModel)
    labels = {0: "allow", 1: "refuse", 2: "unsure"}
    make_pooling(
        os.path.join(folder, "classify"),
        BertForSequenceClassification,
        num_labels=3,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    make_multimodal(os.path.join(folder, "multimodal"))
    make_speech(os.path.join(folder, "speech"))
    print(json.dumps(sorted(os.listdir(folder))))


if __name__ == "__main__":
    main(sys.argv[1])
