"""One network of each family of torchvision and timm goes from a file of 1,000 classes to a bundle of three."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.forks import run_module

QUICK = {
    "googlenet",
    "mnasnet0_5",  # its load_state_dict asks for the version of the state
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "timm.levit_128s",
    "timm.repvit_m1",
    "timm.test_convnext",
    "timm.test_vit",
}

# The smallest network of each family, the smallest images that it takes, of 32 pixels and more, and its arguments.
# Networks of more than 60 million weights have two blocks, if they can. No family is left out. Encoders without
# classes, such as gemma4_vit_167m_enc, are not among them: `num_classes` has no meaning there.
TORCHVISION: list[tuple[str, int, dict[str, Any]]] = [
    ("alexnet", 64, {}),
    ("densenet121", 32, {}),
    ("googlenet", 32, {}),
    ("maxvit_t", 224, {}),
    ("mobilenet_v2", 32, {}),
    ("regnet_y_400mf", 32, {}),
    ("shufflenet_v2_x0_5", 32, {}),
    ("swin_t", 32, {}),
    ("vgg11", 32, {}),
    ("convnext_tiny", 32, {}),
    ("efficientnet_b0", 32, {}),
    ("inception_v3", 96, {}),
    ("mnasnet0_5", 32, {}),
    ("mobilenet_v3_small", 32, {}),
    ("resnet18", 32, {}),
    ("squeezenet1_1", 32, {}),
    ("swin_v2_t", 32, {}),
    ("vit_b_16", 32, {"image_size": 32}),
]
TIMM: list[tuple[str, int, dict[str, Any]]] = [
    ("timm.beit_base_patch16_224", 32, {"img_size": 32, "depth": 2}),
    ("timm.cait_xxs24_224", 32, {"img_size": 32}),
    ("timm.coat_tiny", 32, {"img_size": 32}),
    ("timm.convit_tiny", 32, {"img_size": 32}),
    ("timm.convmixer_768_32", 32, {}),
    ("timm.cpubone_nano", 32, {}),
    ("timm.crossvit_tiny_240", 32, {}),
    ("timm.cs3darknet_focus_s", 32, {}),
    ("timm.csatv2", 64, {}),
    ("timm.cspnext_tiny", 32, {}),
    ("timm.davit_tiny", 32, {}),
    ("timm.deepseek_vit_412m", 224, {"depth": 2}),
    ("timm.deit_tiny_patch16_224", 32, {"img_size": 32}),
    ("timm.densenet121", 32, {}),
    ("timm.dla46x_c", 32, {}),
    ("timm.dpn48b", 32, {}),
    ("timm.edgenext_xx_small", 32, {}),
    ("timm.efficientformer_l1", 224, {}),
    ("timm.efficientformerv2_s0", 32, {"img_size": 32}),
    ("timm.efficientvim_m1", 32, {}),
    ("timm.efficientvit_b0", 32, {}),
    ("timm.efficientvit_m0", 32, {}),
    ("timm.ese_vovnet19b_slim_dw", 32, {}),
    ("timm.fasternet_t0", 32, {}),
    ("timm.fastvit_t8", 32, {}),
    ("timm.focalnet_tiny_srf", 32, {}),
    ("timm.gcvit_xxtiny", 32, {"img_size": 32}),
    ("timm.gemma4_vit_167m", 32, {"depth": 2}),
    ("timm.ghostnet_050", 32, {}),
    ("timm.gmlp_ti16_224", 32, {"img_size": 32}),
    ("timm.halonet_h1", 256, {}),
    ("timm.hardcorenas_b", 32, {}),
    ("timm.hgnetv2_b0", 32, {}),
    ("timm.hiera_tiny_224", 32, {"img_size": 32}),
    ("timm.hrnet_w18_small", 32, {}),
    ("timm.iformer_t", 32, {}),
    ("timm.inception_next_atto", 32, {}),
    ("timm.inception_resnet_v2", 96, {}),
    ("timm.inception_v3", 96, {}),
    ("timm.inception_v4", 96, {}),
    ("timm.lcnet_035", 32, {}),
    ("timm.lcnetv2_small", 32, {}),
    ("timm.legacy_seresnet18", 32, {}),
    ("timm.legacy_xception", 32, {}),
    ("timm.levit_128s", 32, {"img_size": 32}),
    ("timm.lowformer_b0", 32, {}),
    ("timm.mobilenetv5_base", 32, {}),
    ("timm.mobilevit_xxs", 32, {}),
    ("timm.mvitv2_tiny", 32, {}),
    ("timm.naflexvit_base_patch16_parfac_gap", 32, {"depth": 2}),
    ("timm.nasnetalarge", 32, {}),
    ("timm.nest_tiny", 32, {"img_size": 32}),
    ("timm.nextvit_small", 32, {}),
    ("timm.pit_ti_224", 32, {"img_size": 32}),
    ("timm.pnasnet5large", 32, {}),
    ("timm.poolformerv2_s12", 32, {}),
    ("timm.pvt_v2_b0", 32, {}),
    ("timm.qwen3_vit_88m", 32, {"depth": 2}),
    ("timm.rdnet_tiny", 32, {}),
    ("timm.regnetx_002", 32, {}),
    ("timm.repghostnet_050", 32, {}),
    ("timm.repvit_m1", 32, {}),
    ("timm.res2next50", 32, {}),
    ("timm.resnest14d", 32, {}),
    ("timm.resnetv2_18", 32, {}),
    ("timm.rexnet_100", 32, {}),
    ("timm.sam2_hiera_tiny", 32, {}),
    ("timm.samvit_base_patch16_224", 32, {"depth": 2}),
    ("timm.selecsls42", 32, {}),
    ("timm.sequencer2d_s", 32, {}),
    ("timm.shvit_s1", 32, {}),
    ("timm.skresnet18", 32, {}),
    ("timm.starnet_s050", 32, {}),
    ("timm.swiftformer_xs", 32, {}),
    ("timm.swin_tiny_patch4_window7_224", 32, {"img_size": 32}),
    ("timm.swinv2_cr_tiny_224", 32, {"img_size": 32}),
    ("timm.swinv2_tiny_window8_256", 32, {"img_size": 32}),
    ("timm.test_byobnet", 32, {}),
    ("timm.test_coatnet", 32, {"img_size": 32}),
    ("timm.test_convnext", 32, {}),
    ("timm.test_efficientnet", 32, {}),
    ("timm.test_mambaout", 32, {}),
    ("timm.test_nfnet", 32, {}),
    ("timm.test_resnet", 32, {}),
    ("timm.test_vit", 32, {}),
    ("timm.test_vit_relpos", 32, {"img_size": 32}),
    ("timm.tiny_vit_5m_224", 32, {}),
    ("timm.tnt_s_legacy_patch16_224", 32, {"img_size": 32}),
    ("timm.tresnet_m", 32, {}),
    ("timm.twins_svt_small", 32, {}),
    ("timm.vgg11", 32, {}),
    ("timm.visformer_tiny", 32, {"img_size": 32}),
    ("timm.vit_tiny_patch16_dinov3_qkvb", 32, {}),
    ("timm.vit_tiny_r_s16_p8_224", 32, {"img_size": 32}),
    ("timm.vitamin_small_224", 32, {"img_size": 32}),
    ("timm.volo_d1_224", 32, {"img_size": 32}),
    ("timm.xception41p", 32, {}),
    ("timm.xcit_nano_12_p8_224", 32, {}),
]
# Those with several heads whose smallest member has one, and one whose configuration names only the first.
SEVERAL_HEADS: list[tuple[str, int, dict[str, Any]]] = [
    ("timm.deit_tiny_distilled_patch16_224", 32, {"img_size": 32}),
    ("timm.efficientvim_m1_dist", 32, {}),
    ("timm.iformer_m_distilled", 32, {}),
    ("timm.levit_384_s8", 32, {"img_size": 32}),
    ("timm.pit_ti_distilled_224", 32, {"img_size": 32}),
]


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        pytest.param(*network, id=network[0], marks=[] if network[0] in QUICK else [pytest.mark.slow])
        for network in (*TORCHVISION, *TIMM, *SEVERAL_HEADS)
    ],
)
def test_network_starts_from_a_thousand_classes_and_ends_in_a_bundle_of_three(
    tmp_path: Path, name: str, size: int, arguments: dict[str, Any]
) -> None:
    if name.startswith("timm."):
        pytest.importorskip("timm")
    asked = json.dumps({"name": name, "size": size, "arguments": arguments})
    code, out, err = run_module("tests.models.family", (asked,), cwd=tmp_path, timeout_s=280)
    assert code == 0, f"{out}\n{err}"


@pytest.mark.slow
def test_every_family_is_there() -> None:
    timm = pytest.importorskip("timm")
    from torchvision import models

    named = {name.removeprefix("timm.") for name, _, _ in TIMM}
    missing = [module for module in timm.list_modules() if not named & set(timm.list_models(module=module))]
    assert not missing
    families = {models.get_model_builder(name).__module__ for name in models.list_models(module=models)}
    assert families == {models.get_model_builder(name).__module__ for name, _, _ in TORCHVISION}
