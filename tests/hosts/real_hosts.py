"""One host's own code, in a process of its own: ``python real_hosts.py HOST what result.pt`` in the host's root.

``what`` is ``stock``: build the host's model under a fixed seed, run it forward and one step of its own loss backward,
and save every weight, gradient and output; or ``vqct``: build it by ``quantizer_config``, train it by the host's own
losses and optimizers, save, load and decode it as the host does, and check all of that. Sizes are as small as the
host's code takes. The quantizer's config comes from the environment variable ``CONFIG``, a YAML file.
"""

import argparse
import contextlib
import copy
import os
import sys
import tempfile
import types
from types import MappingProxyType

import torch

sys.path.insert(0, os.getcwd())
if os.path.isdir("taming/models") and not os.path.exists("taming/__init__.py"):
    # a namespace package, which an installed wheel of the same name would go before
    sys.modules["taming"] = types.ModuleType("taming")
    sys.modules["taming"].__path__ = [os.path.join(os.getcwd(), "taming")]
DDCONFIG = {
    "double_z": False, "z_channels": 32, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
N_EMBED, EMBED_DIM = 40, 16


def images(number=2, size=32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(number, 3, size, size, generator=generator) * 2 - 1


def config():
    return os.environ.get("CONFIG")


def assert_average(quantizer, expected):
    """A quantizer with averaged weights: they are the expected ones, over the graph that its prior makes."""
    for name, p in quantizer.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
    made_again = type(quantizer).from_state_dict(quantizer.state_dict())  # the graph anew, from the prior in the state
    assert torch.equal(made_again.embedding.weight, quantizer.embedding.weight)


class Taming:
    """Both checkouts of taming-transformers, and latent-diffusion: two optimizers, a loss with optimizer_idx."""

    module, loss = "taming.models.vqgan", "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    extra = MappingProxyType({})
    stock_steps = 2

    def build(self, quantizer_config):
        import importlib

        from vqct_plugin.compat.taming_imports import import_taming, lend_removed_names

        import_taming()
        with lend_removed_names():
            model = importlib.import_module(self.module).VQModel
        given = {} if quantizer_config is None else {"quantizer_config": plain_config(quantizer_config)}
        loss = {"target": self.loss, "params": {"disc_start": 100, "disc_num_layers": 1, **self.extra}}
        return model(DDCONFIG, loss, N_EMBED, EMBED_DIM, **given)

    def steps(self, model, number):
        x, losses = images(), []
        parameters = [
            parameter
            for part in ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")
            for parameter in getattr(model, part).parameters()
        ]
        optimizers = [torch.optim.Adam(p, lr=1e-3) for p in (parameters, model.loss.discriminator.parameters())]
        for step in range(number):
            for index, optimizer in enumerate(optimizers):
                loss = self.loss_of(model, x, index, step)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        return losses

    def loss_of(self, model, x, index, step):
        reconstruction, codebook_loss = model(x)
        return model.loss(codebook_loss, x, reconstruction, index, step, last_layer=model.get_last_layer())[0]

    def reconstruction(self, model, x):
        return model.decode(model.encode(x)[0])

    def decoded(self, model, x):
        """The reconstruction, and what the host's decode_code makes of its indices."""
        quantized, _, (_, _, indices) = model.encode(x)
        return model.decode(quantized), model.decode_code(indices.view(len(x), -1))


class LatentDiffusion(Taming):
    module, loss = "ldm.models.autoencoder", "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    extra = MappingProxyType({"n_classes": N_EMBED, "perceptual_loss": "lpips"})
    stock_steps = 0  # the host's own loss ends in a NameError

    def loss_of(self, model, x, index, step):
        reconstruction, codebook_loss, indices = model(x, return_pred_indices=True)
        return model.loss(
            codebook_loss, x, reconstruction, index, step, last_layer=model.get_last_layer(), predicted_indices=indices
        )[0]


class LatentDiffusionShipped(LatentDiffusion):
    """With taming's loss, as the host's own configs of first stages have it, which takes no predicted_indices."""

    loss, extra = Taming.loss, Taming.extra


class LatentDiffusionUnpatched(LatentDiffusion):
    """``vqct_plugin.hosts.latent_diffusion`` on the untouched checkout, with the host's EMA."""

    def build(self, quantizer_config):
        from vqct_plugin.hosts.latent_diffusion import VQModel, VQModelInterface

        loss = {"target": self.loss, "params": {"disc_start": 100, "disc_num_layers": 1, **self.extra}}
        options = plain_config(quantizer_config)["params"]
        given = {"ddconfig": DDCONFIG, "lossconfig": loss, "n_embed": N_EMBED, "embed_dim": EMBED_DIM, **options}
        self.interface = VQModelInterface(**given)
        return VQModel(**given, use_ema=True)

    def steps(self, model, number):
        losses = super().steps(model, number)
        # the host's own LitEma, twice: its average is of the weights, and the graph stays as it is
        ema, start = model.model_ema, copy.deepcopy(model.quantize)
        expected = {}
        for name, p in model.quantize.named_parameters():
            shadow = getattr(ema, ema.m_name2s_name[f"quantize.{name}"])
            decay = min(float(ema.decay), (1 + int(ema.num_updates) + 1) / (10 + int(ema.num_updates) + 1))
            expected[name] = (decay * shadow + (1 - decay) * p).detach()
        ema(model)
        with model.ema_scope():
            assert_average(model.quantize, expected)
        assert all(torch.equal(a, b) for a, b in zip(model.quantize.parameters(), start.parameters()))
        self.interface.load_state_dict(model.state_dict(), strict=False)
        model.eval(), self.interface.eval()
        x = images()
        assert torch.equal(self.interface.decode(self.interface.encode(x)), model(x)[0])
        entry = self.interface.quantize.get_codebook_entry  # as ddpm.py calls it, without a shape
        indices = model.encode(x)[2][2].view(len(x), -1, 16, 16)
        indices = indices[:, 0] if indices.shape[1] == 1 else indices
        assert torch.equal(entry(indices, shape=None).permute(0, 3, 1, 2), model.encode(x)[0])
        model.train()
        return losses


class SeedVoken(Taming):
    """IBQ's class: its own quantizer is replaced, its EMA knows ours."""

    def build(self, quantizer_config, **options):
        from src.IBQ.models.ibqgan import IBQ

        given = {} if quantizer_config is None else {"quantizer_config": plain_config(quantizer_config)}
        loss = {
            "target": "src.IBQ.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
            "params": {"disc_start": 100, "disc_num_layers": 1, "gen_loss_weight": 0.1, "lecam_loss_weight": 0.05},
        }
        options = {"use_entropy_loss": quantizer_config is None, "use_ema": True, "beta": 0.2, **options}
        if quantizer_config is not None:
            options["l2_normalize"] = True
            with contextlib.suppress(ValueError):
                IBQ(DDCONFIG, loss, N_EMBED, EMBED_DIM, **given, **{**options, "use_entropy_loss": True})
                raise AssertionError("use_entropy_loss is ignored")
        model = IBQ(DDCONFIG, loss, N_EMBED, EMBED_DIM, **given, **options)
        assert model.quantize.beta == 0.2
        assert quantizer_config is None or model.quantize.l2_normalize
        return model

    def steps(self, model, number):
        losses = super().steps(model, number)
        model.model_ema(model)  # a KeyError, did it not know every parameter
        with model.ema_scope():
            pass
        return losses


class SimVQ(Taming):
    def build(self, quantizer_config):
        from taming.models.vq import VQModel

        stock = {"target": "taming.modules.vqvae.quantize.SimVQ"}
        quantizer = {**(plain_config(quantizer_config) if quantizer_config else stock)}
        params = {"n_e": N_EMBED, "e_dim": 32, "beta": 0.25, "legacy": False}
        quantizer["params"] = {**params, **quantizer.get("params", {})}
        loss = {
            "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
            "params": {"disc_start": 100, "gen_loss_weight": 0.1, "commit_weight": 1.0},
        }
        ddconfig = {k: v for k, v in DDCONFIG.items() if k not in ("attn_resolutions", "dropout")}
        model = VQModel({**ddconfig, "z_channels": 32}, loss, quantizer, use_ema=True)
        model.quant_conv = model.post_quant_conv = torch.nn.Identity()
        model.on_train_epoch_start()
        return model

    def loss_of(self, model, x, index, step):
        reconstruction, codebook_loss, breakdown = model(x)
        last_layer = model.get_last_layer()
        return model.loss(codebook_loss, breakdown, x, reconstruction, index, step, last_layer=last_layer)[0]

    def decoded(self, model, x):
        quantized, _, indices, _ = model.encode(x)
        b, c, h, w = quantized.shape
        return model.decode(quantized), model.decode(model.quantize.get_codebook_entry(indices, (b, h, w, c)))


class LlamaGen:
    stock_steps = 2
    reconstruction = Taming.reconstruction

    def build(self, quantizer_config):
        from tokenizer.tokenizer_image.vq_loss import VQLoss
        from tokenizer.tokenizer_image.vq_model import ModelArgs, VQModel

        given = {"quantizer_config": quantizer_config}
        if quantizer_config is None:
            given = {"codebook_show_usage": False}  # which writes in place into an nn.Parameter, an error on a CPU
        model = VQModel(
            ModelArgs(
                codebook_size=N_EMBED, codebook_embed_dim=EMBED_DIM, encoder_ch_mult=[1, 1], decoder_ch_mult=[1, 1],
                z_channels=32, **given,
            )
        )  # fmt: skip
        self.loss = VQLoss(disc_start=100, disc_num_layers=1, image_size=32, disc_adaptive_weight=True)
        return model

    def steps(self, model, number):
        x, losses = images(), []
        logger = types.SimpleNamespace(info=print)
        optimizers = [torch.optim.Adam(p, lr=1e-3) for p in (model.parameters(), self.loss.discriminator.parameters())]
        for step in range(number):
            for index, optimizer in enumerate(optimizers):
                reconstruction, codebook_loss = model(x)
                loss = self.loss(
                    codebook_loss, x, reconstruction, index, step, last_layer=model.decoder.last_layer, logger=logger
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        if hasattr(model.quantize, "transfer"):
            self.average(model)
        return losses

    def average(self, model):
        """The host's own ``update_ema``, as its vq_train.py calls it."""
        from utils.ema import requires_grad, update_ema

        ema, start = copy.deepcopy(model), copy.deepcopy(model.quantize)
        requires_grad(ema, False)
        update_ema(ema, model, decay=0)
        with torch.no_grad():
            for p in model.quantize.parameters():
                p.mul_(1.5)
        update_ema(ema, model, decay=0.9)
        assert_average(ema.quantize, {name: p.detach() * 1.05 for name, p in start.named_parameters()})
        ema.load_state_dict(ema.state_dict())
        model.quantize.load_state_dict(start.state_dict())

    def decoded(self, model, x):
        quantized, _, (_, _, indices) = model.encode(x)
        return model.decode(quantized), model.decode_code(indices, quantized.shape)


class VqganLc:
    stock_steps = 2
    reconstruction = Taming.reconstruction

    def build(self, quantizer_config):
        from models.models_vq import VQModel

        args = argparse.Namespace(
            stage=1, embed_dim=EMBED_DIM, rate_p=1.0, rate_q=1.0, rate_d=0.1, disc_start=100, quantizer_type="org",
            tuning_codebook=-1, n_vision_words=N_EMBED, use_cblinear=int(quantizer_config is not None),
        )  # fmt: skip
        given = {} if quantizer_config is None else {"quantizer_config": plain_config(quantizer_config)}
        model = VQModel(args=args, ddconfig=DDCONFIG, embed_dim=EMBED_DIM, **given)
        self.args = args
        return model

    def steps(self, model, number):
        # the lists of training_vqgan.py, with its README's use_cblinear 1: all that they name, and nothing unused
        parts = ("encoder", "decoder", "tok_embeddings", "quant_conv", "post_quant_conv")
        parts += ("codebook_projection",) * self.args.use_cblinear
        parameters = [parameter for part in parts for parameter in getattr(model, part).parameters()]
        optimizers = [torch.optim.Adam(p, lr=1e-3) for p in (parameters, model.discriminator.parameters())]
        losses = []
        for step in range(1, number + 1):
            for index, optimizer in enumerate(optimizers):
                loss, _, _, _, _, labels, _ = model(images(), None, step, step=index)
                torch.nn.functional.one_hot(labels.view(-1), num_classes=self.args.n_vision_words)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        return losses

    def decoded(self, model, x):
        quantized, _, (_, _, indices) = model.encode(x)
        if model.tok_embeddings.tokens_per_position == 1:  # as models_gpt.py's z_to_image
            b, c, h, w = quantized.shape
            rows = torch.nn.functional.embedding(indices.view(b, -1), model.tok_embeddings.weight)
            return model.decode(quantized), model.decode(rows.reshape(b, h, w, c).permute(0, 3, 1, 2))
        b, c, h, w = quantized.shape
        entry = model.tok_embeddings.get_codebook_entry(indices, (b, h, w, c))
        return model.decode(quantized), model.decode(entry)


class CvqVae:
    stock_steps = 2

    def reconstruction(self, model, x):
        return model(x)[0]

    def build(self, quantizer_config):
        from modules import Model

        given = {} if quantizer_config is None else {"quantizer_config": quantizer_config}
        model = Model(3, 32, 1, 8, N_EMBED, EMBED_DIM, 0.3, "l2", "closest", False, False, **given)
        assert model._vq_vae.beta == 0.3
        assert quantizer_config is None or not model._vq_vae.legacy  # it weighs the commitment, as its own does
        return model

    def steps(self, model, number):
        x, optimizer, losses = images(), torch.optim.Adam(model.parameters(), lr=1e-3), []
        for _ in range(number):
            reconstruction, loss_vq, perplexity, encodings = model(x)
            loss = torch.nn.functional.mse_loss(reconstruction, x) + loss_vq
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert perplexity.item() >= 1
            assert torch.all(encodings.sum(1) == 1)
            assert encodings.shape[1] == len(model._vq_vae.embedding.weight.data) == N_EMBED
            losses.append(float(loss.detach()))
        return losses

    def decoded(self, model, x):
        z = model._pre_vq_conv(model._encoder(x))
        quantized, _, (_, encodings, _) = model._vq_vae(z)
        indices = encodings.argmax(dim=1).view(len(x), -1)  # as test.py reads them
        b, c, h, w = quantized.shape
        return model._decoder(quantized), model._decoder(model._vq_vae.get_codebook_entry(indices, (b, h, w, c)))


class TiTok:
    """Stage 1, by the host's own ``train_one_epoch``. Two of its eight layers, and random numbers for proxy codes."""

    stock_steps = 2

    def build(self, quantizer_config):
        from modeling.titok import TiTok as Model

        self.config = self.make_config(quantizer_config)
        return self.shortened(Model(self.config))

    def shortened(self, model):
        for part in (model.encoder, model.decoder):
            part.num_layers, part.transformer = 2, part.transformer[:2]
        return model

    def make_config(self, quantizer_config):
        from omegaconf import OmegaConf

        vq_model = {
            "codebook_size": N_EMBED, "token_size": EMBED_DIM, "use_l2_norm": True, "commitment_cost": 0.3,
            "vit_enc_model_size": "small", "vit_dec_model_size": "small", "vit_enc_patch_size": 16,
            "vit_dec_patch_size": 16, "num_latent_tokens": 12, "finetune_decoder": False, "clustering_vq": False,
        }  # fmt: skip
        if quantizer_config is not None:
            vq_model["quantizer_config"] = plain_config(quantizer_config)
        return OmegaConf.create(
            {
                "model": {"vq_model": vq_model},
                "dataset": {"preprocessing": {"crop_size": 32}},
                "losses": {"quantizer_weight": 1.0},
                "optimizer": {
                    "name": "adamw",
                    "params": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 1e-4},
                },
                "training": {
                    "max_grad_norm": 1.0, "use_ema": True, "gradient_accumulation_steps": 1, "per_gpu_batch_size": 2,
                    "max_train_steps": 1000,
                },
                "experiment": {
                    "log_every": 1000, "save_every": 1000, "generate_every": 1000, "eval_every": 1000,
                    "log_grad_norm_every": 1000,
                },
            }
        )  # fmt: skip

    def steps(self, model, number):
        import logging
        from unittest import mock

        from accelerate import Accelerator

        for name in ("open_clip", "open_clip.transformer", "torchinfo", "termcolor"):
            with contextlib.suppress(ImportError):
                __import__(name)
            sys.modules.setdefault(name, mock.MagicMock())  # of its other models, and of its messages
        import data.webdataset_reader  # whose last class its own training misses, where the patch is not in
        from modeling.modules import EMAModel, ReconstructionLoss_Stage1

        data.PretokenizedWebDataset = data.webdataset_reader.PretokenizedWebDataset
        from utils.train_utils import create_optimizer, train_one_epoch

        accelerator, logger, losses = Accelerator(cpu=True), logging.getLogger("titok"), []
        loss = ReconstructionLoss_Stage1(config=self.config)
        loss.register_forward_hook(lambda module, given, result: losses.append(float(result[0].detach())))
        optimizer, _ = create_optimizer(self.config, logger, model, loss)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        ema = EMAModel(model.parameters(), decay=0.999, model_cls=type(model), config=self.config)
        x = (images() + 1) / 2
        codes = torch.randint(1024, (len(x), 2, 2), generator=torch.Generator().manual_seed(2))
        proxy = types.SimpleNamespace(eval=lambda: None, encode=lambda given: codes)
        batches = [{"image": x, "__key__": ["a", "b"]}] * number
        train_one_epoch(
            self.config, logger, accelerator, model, ema, loss, optimizer, None, schedule, None, batches, None, None, 0,
            pretrained_tokenizer=proxy,
        )  # fmt: skip
        assert len(losses) == number
        if hasattr(model.quantize, "transfer"):
            self.check(model, ema)
        return losses

    def check(self, model, ema):
        """What the host saves, as it saves it; its EMA; and its other tokenizer, with captions."""
        from modeling.tatitok import TATiTok

        assert model.quantize.beta == 0.3
        assert model.quantize.l2_normalize
        assert not model.quantize.legacy
        vq_model = self.config.model.vq_model
        vq_model.clustering_vq = True
        with contextlib.suppress(ValueError):
            type(model)(self.config)
            raise AssertionError("clustering_vq is ignored")
        vq_model.clustering_vq = False
        shadows = dict(zip((name for name, _ in model.named_parameters()), ema.shadow_params))
        averaged = copy.deepcopy(model.quantize)
        for name, p in averaged.named_parameters():
            p.data.copy_(shadows[f"quantize.{name}"])
        assert_average(averaged, {name: shadows[f"quantize.{name}"] for name, _ in averaged.named_parameters()})
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained_weight(folder)
            again = self.shortened(type(model)(self.config))
            again.load_pretrained_weight(folder)  # strictly
            assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
        with tempfile.TemporaryDirectory() as folder:
            whole = type(model)(self.config)
            whole.save_pretrained(folder)  # as the hub's mixin has it
            loaded = type(model).from_pretrained(folder)
            assert torch.equal(loaded.quantize.embedding.weight, whole.quantize.embedding.weight)
        captioned = self.shortened(TATiTok(self.config))
        text, x = torch.randn(2, 77, 768), (images() + 1) / 2
        rebuilt, found = captioned(x, text)
        (rebuilt.sum() + found["quantizer_loss"]).backward()
        assert all(p.grad is not None for p in captioned.quantize.parameters())
        captioned.eval()
        with torch.no_grad():
            rebuilt, found = captioned(x, text)
            decoded = captioned.decode_tokens(found["min_encoding_indices"], text)
        torch.testing.assert_close(decoded, rebuilt, rtol=1e-4, atol=1e-5)

    def reconstruction(self, model, x):
        return model(x)[0]

    def decoded(self, model, x):
        quantized, found = model.encode(x)
        return model.decode(quantized), model.decode_tokens(found["min_encoding_indices"])


HOSTS = {
    "taming-transformers": Taming,
    "taming-transformers-rom1504": Taming,
    "latent-diffusion": LatentDiffusion,
    "latent-diffusion-shipped": LatentDiffusionShipped,
    "latent-diffusion-unpatched": LatentDiffusionUnpatched,
    "SEED-Voken": SeedVoken,
    "LlamaGen": LlamaGen,
    "VQGAN-LC": VqganLc,
    "CVQ-VAE": CvqVae,
    "1d-tokenizer": TiTok,
    "SimVQ": SimVQ,
}


def plain_config(path):
    import yaml

    with open(path) as file:
        return yaml.safe_load(file)


def stock(host):
    """Everything that one forward, two steps and the trained weights give; the same bits, patched or not."""
    torch.manual_seed(0)
    model = host.build(None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = host.steps(model, host.stock_steps)
    after = model.state_dict()
    model.eval()
    with torch.no_grad():
        output = host.reconstruction(model, images())
    return {"before": before, "losses": losses, "after": after, "output": output}


def vqct(host):
    torch.manual_seed(0)
    model = host.build(config())
    name = next(name for name, module in model.named_modules() if hasattr(module, "transfer"))
    quantizer = dict(model.named_modules())[name]
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    with contextlib.redirect_stdout(sys.stderr):
        losses = host.steps(model, 8)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    after = quantizer.state_dict()
    averages = ["transfer.counts", "transfer.sums"]  # which the default has in place of weights
    learned = [key for key, _ in quantizer.named_parameters()] or averages
    assert all((before[key] != after[key]).any() for key in learned), "not all of the transfer has learned"
    model.eval()
    x = images()
    with torch.no_grad():
        reconstruction, decoded = host.decoded(model, x)
    torch.testing.assert_close(decoded, reconstruction, rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    again = host.build(config())
    again.load_state_dict(model.state_dict(), strict=False)
    again.eval()
    with torch.no_grad():
        assert torch.equal(host.decoded(again, x)[0], reconstruction), "a loaded checkpoint reconstructs otherwise"
    return {"losses": losses, "n_e": quantizer.n_e, "tokens": quantizer.tokens_per_position}


if __name__ == "__main__":
    torch.set_num_threads(1)
    host_name, what, result = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        found = {"stock": stock, "vqct": vqct}[what](HOSTS[host_name]())
    torch.save(found, result)
    if what == "vqct":
        first, last = found["losses"][0], found["losses"][-2 if len(found["losses"]) == 16 else -1]
        print(f"{host_name}: {found['n_e']} codes, {found['tokens']} token(s), loss {first:.4f} -> {last:.4f}")
