# The article's own script; only "from transformers" is changed to "from beyondvl".
import sys
import torch
from beyondvl import AutoModel, AutoTokenizer
from PIL import Image

model_name = "beyond-vl-model"
model = AutoModel.from_pretrained(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_name)
device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

from beyondvl import CLIPProcessor

image = Image.open(sys.argv[1] if len(sys.argv) > 1 else "path_to_your_image.jpg")
processor = CLIPProcessor.from_pretrained(model_name)
inputs = processor(text=["描述这个图像的文本"], images=image, return_tensors="pt", padding=True).to(device)
outputs = model(**inputs)
print(outputs)

text_features = outputs.text_embeds
image_features = outputs.image_embeds
similarity = torch.matmul(text_features, image_features.T)
print(similarity)
