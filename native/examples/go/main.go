// Embeds a PNG or JPEG file and texts through cgo, and prints how probable each text is.
//
//	PKG_CONFIG_PATH=/opt/fgclip/lib/pkgconfig go build
//	./fgclip BUNDLE IMAGE TEXT...
package main

import (
	"context"
	"fmt"
	"image"
	"image/draw"
	_ "image/jpeg"
	_ "image/png"
	"os"
	"time"
)

// read gives an image as it is stored, without a turn of EXIF. Go's decoder of JPEG rounds otherwise than libjpeg does,
// which moves vectors a little.
func read(path string) (*image.NRGBA, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	decoded, _, err := image.Decode(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	pixels := image.NewNRGBA(decoded.Bounds())
	draw.Draw(pixels, pixels.Rect, decoded, decoded.Bounds().Min, draw.Src)
	return pixels, nil
}

func rate(bundle, path string, texts []string) error {
	picture, err := read(path)
	if err != nil {
		return err
	}
	model, err := Open(bundle, 0)
	if err != nil {
		return err
	}
	defer model.Close()
	worker, err := model.NewWorker()
	if err != nil {
		return err
	}
	defer worker.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	vector, err := worker.EmbedImage(ctx, picture)
	if err != nil {
		return err
	}
	vectors, err := worker.EmbedTexts(ctx, texts)
	if err != nil {
		return err
	}
	probabilities, err := model.Probabilities(vector, vectors)
	if err != nil {
		return err
	}
	for i, text := range texts {
		fmt.Printf("%.4f %s\n", probabilities[i], text)
	}
	return nil
}

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintf(os.Stderr, "usage: %s BUNDLE IMAGE TEXT...\n", os.Args[0])
		os.Exit(2)
	}
	if err := rate(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
