"""What nobody needs any more in the bucket: find it, and delete it while runs go on."""
