"""Makes the tiny models that the proofs serve. Nothing is downloaded.

usage: make_models.py FOLDER

FOLDER/generate    a Llama of 2 layers with a ChatML template
FOLDER/embed       a BERT without a head, mean pooling
FOLDER/classify    the same with 3 labels
FOLDER/multimodal  a LLaVA: a CLIP tower of 3 layers before the same Llama

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
)

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
    print(json.dumps(sorted(os.listdir(folder))))


if __name__ == "__main__":
    main(sys.argv[1])
