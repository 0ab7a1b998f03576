/* The trust store: covey.v1.Certificates (spec/api.md 2). */
#ifndef COVEY_SERVER_AUTH_CERTIFICATES_H
#define COVEY_SERVER_AUTH_CERTIFICATES_H

void certificates_bind(void); /* at start, before servers listen; registers the token's kind of operation (4) */

#endif
